"""The front for an exchange by files, without a process: its supervisor answers what a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, UnavailableError
from trainer.exchange.spool import SpoolDirectory
from trainer.exchange.upload_authorization import UploadGate
from trainer.front.spool_front import SpoolFront
from trainer.ipc.front_messages import (
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    OpenUpload,
    Shutdown,
    StatusUpdate,
    SupervisorMessage,
)
from trainer.models import Phase, Status


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
    SpoolFront(
        SpoolDirectory(tmp_path), cast("Any", supervisor), 1, gate, clock=lambda: supervisor.now
    ).run()
    assert (tmp_path / "evidence.json").exists()
    first, second, third = supervisor.asked  # not again once it was answered
    assert 2 <= second - first <= 3
    assert 2 <= third - second <= 3


def test_a_taken_dataset_of_a_joint_job_is_not_judged_by_an_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its provider looks at the status as soon as its file is gone, perhaps before the supervisor does."""
    dataset, seen = tmp_path / f"dataset-{'ab' * 8}.age", list[Status]()
    replace: Callable[[Path, Path], Path] = Path.replace

    def replaced(path: Path, target: Path) -> Path:
        if path == dataset:
            seen.append(Status.model_validate_json((tmp_path / "status.json").read_bytes()))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replaced)
    dataset.write_bytes(b"sealed")
    supervisor = BusySupervisor()
    front = SpoolFront(
        SpoolDirectory(tmp_path), cast("Any", supervisor), 10, UploadGate((), None), joint=True
    )
    refusal = Status(
        phase=Phase.AWAITING_DATASET, error="dataset-overlong", result_bytes=7, received=(1,)
    )
    front._take(StatusUpdate(status=refusal))
    front._take(OpenUpload(accept=True))
    front._look_for_files()
    assert (tmp_path / "dataset.age").read_bytes() == b"sealed"
    assert [status.announces_refusal for status in seen] == [False]
    assert seen[0].received == (1,)
