"""The front for an exchange by files, without a process: its supervisor answers what a test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from trainer.errors import ErrorCode, UnavailableError
from trainer.exchange.spool import SpoolDirectory
from trainer.exchange.upload_authorization import UploadGate
from trainer.front.spool_front import SpoolFront
from trainer.ipc.front_messages import (
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    Shutdown,
    SupervisorMessage,
)


class BusySupervisor:
    """A control channel to a supervisor that has nothing to attest until it is asked for the third time."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.now = 0.0
        self._replies: list[EvidenceReply] = []

    def send(self, message: FrontMessage) -> None:
        if isinstance(message, EvidenceRequest):
            self.asked.append(self.now)
            is_ready = len(self.asked) == 3
            evidence, error = ("{}", None) if is_ready else (None, ErrorCode.JOB_BUSY)
            self._replies.append(EvidenceReply(id=message.id, evidence=evidence, error=error))

    def receive(self, *, timeout: float) -> SupervisorMessage:
        self.now += timeout
        if self.now > 60:
            return Shutdown()
        if self._replies:
            return self._replies.pop()
        raise UnavailableError(ErrorCode.TIMEOUT, "nothing yet")


def test_a_nonce_that_came_too_early_is_answered_later(tmp_path: Path) -> None:
    """A provider's command that begins while the job prepares; a question may cost a quote, so it has a pause."""
    supervisor = BusySupervisor()
    (tmp_path / "nonce").write_text("cd" * 32)
    gate = UploadGate((), None)
    SpoolFront(SpoolDirectory(tmp_path), cast("Any", supervisor), 1, gate, clock=lambda: supervisor.now).run()
    assert (tmp_path / "evidence.json").exists()
    first, second, third = supervisor.asked  # not again once it was answered
    assert 2 <= second - first <= 3
    assert 2 <= third - second <= 3
