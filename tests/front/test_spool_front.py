"""The front for an exchange by files, without a process: its supervisor answers what a test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.full_disk import room_for
from trainer.errors import ErrorCode, UnavailableError
from trainer.exchange.spool import SpoolDirectory
from trainer.exchange.upload_authorization import UploadGate, UploadScope
from trainer.exchange.withdrawal import Withdrawal, sign_withdrawal, withdrawal_name
from trainer.front.spool_front import SpoolFront
from trainer.ipc.front_messages import (
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    OpenUpload,
    Shutdown,
    StatusUpdate,
    SupervisorMessage,
    WithdrawalReceived,
)
from trainer.models import Phase, Status
from trainer.provider_keys import ProviderKey


class BusySupervisor:
    """A control channel to a supervisor that has nothing to attest until it is asked for the third time."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.now = 0.0
        self._replies: list[EvidenceReply] = []
        self.sent: list[FrontMessage] = []

    def send(self, message: FrontMessage) -> None:
        self.sent.append(message)
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


def test_half_an_event_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    front = SpoolFront(SpoolDirectory(tmp_path), cast("Any", None), 1, UploadGate((), None))
    front._add_event("YQ==")
    events = tmp_path / "events.jsonl"
    with room_for(events.stat().st_size + 10):
        front._add_event("Yg==")
    front._add_event("Yw==")
    assert [json.loads(line)["sealed"] for line in events.read_text().splitlines()] == [
        "YQ==",
        "Yw==",
    ]


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
        SpoolDirectory(tmp_path), cast("Any", supervisor), 10, UploadGate((), None, joint=True)
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


def test_a_withdrawal_is_passed_on_if_a_provider_of_this_job_signed_it(tmp_path: Path) -> None:
    key, supervisor = ProviderKey(b"a" * 32), BusySupervisor()
    front = SpoolFront(
        SpoolDirectory(tmp_path), cast("Any", supervisor), 10,
        UploadGate((key.public,), None, joint=True),
    )  # fmt: skip
    good, forged, other = (
        sign_withdrawal(Withdrawal(version=1, job_spec_sha256=spec, grant_sha256="ab" * 32), signer)
        for spec, signer in (
            ("cd" * 32, key), ("cd" * 32, ProviderKey(b"b" * 32)), ("ef" * 32, key),
        )
    )  # fmt: skip
    for token in (good, forged, other):
        (tmp_path / withdrawal_name(token)).write_text(token + "\n")
    front._look_for_files()
    assert len(list(tmp_path.glob("withdrawal-*"))) == 3, "it waits for the job"
    scope = UploadScope(job_spec_sha256="cd" * 32, recipient_sha256=("ab" * 32,))
    front._take(OpenUpload(accept=True, scope=scope))
    front._take(OpenUpload(accept=False))
    front._look_for_files()
    assert not list(tmp_path.glob("withdrawal-*"))
    assert [message for message in supervisor.sent if isinstance(message, WithdrawalReceived)] == [
        WithdrawalReceived(token=good)
    ]
