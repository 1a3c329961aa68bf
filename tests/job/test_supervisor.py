"""The job's own decisions, where the real processes would take too long to bring them about."""

from __future__ import annotations

import logging
import os
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer import logs
from trainer.errors import ErrorCode, SealingError, TrainerError, UnavailableError
from trainer.ipc.front_messages import StatusUpdate
from trainer.job import supervisor as job
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.front_process import FrontUpdate
from trainer.job.job_options import JobOptions
from trainer.models import Phase, Status

KEYS = cast("Any", SimpleNamespace(upload_scope=lambda _spec_sha256: "scope"))


class Front:
    """Stands where the front process does: each wait brings an upload; statuses are kept."""

    def __init__(self) -> None:
        self.statuses: list[Status] = []

    def send(self, message: FrontUpdate) -> None:
        assert isinstance(message, StatusUpdate)
        self.statuses.append(message.status)

    def wait_upload(self, seconds: float, scope: object) -> int:
        assert seconds > 0
        assert scope == "scope"
        return 1


@pytest.mark.parametrize(
    "refusal",
    [
        SealingError(ErrorCode.NO_IDENTITY_MATCH, "for somebody else"),
        UnavailableError(ErrorCode.STORAGE_FULL, "larger than the workspace"),
    ],
    ids=lambda error: error.code.value,
)
@pytest.mark.parametrize("lasts", [True, False])
def test_no_upload_of_a_stranger_ends_the_job(
    refusal: TrainerError, lasts: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outcomes: list[object] = [refusal, refusal, "opened"]
    receiving = receiving_job(monkeypatch, tmp_path, outcomes, lasts=lasts)
    front = Front()
    assert receiving._receive(cast("Any", front), KEYS) == "opened"  # type: ignore[comparison-overlap]
    told = [(status.phase, status.error) for status in front.statuses if status.phase is Phase.AWAITING_DATASET]
    assert [error for _, error in told] == [None, refusal.code.value, refusal.code.value]
    assert receiving.ciphertext.dataset.exists() == lasts, "what opened stays where another start may find it"


def receiving_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcomes: list[object], *, lasts: bool
) -> job._Job:
    """A job that waits for a dataset; opening one ends as the next of the outcomes says."""

    def open_next(_keys: object) -> object:
        assert not receiving.ciphertext.dataset.exists(), "refused ciphertext does not stay"
        receiving.ciphertext.dataset.touch()
        outcome = outcomes.pop(0)
        if isinstance(outcome, TrainerError):
            raise outcome
        return outcome

    from trainer.spec import ExchangeSection

    receiving = job._Job.__new__(job._Job)
    receiving.ciphertext, receiving.status = CiphertextDirectory(tmp_path, lasts), Status(phase=Phase.PREPARING)
    receiving.options = JobOptions(tmp_path / "job.yaml")
    receiving.public = lambda _event: None  # type: ignore[assignment]
    receiving.spec = cast("Any", SimpleNamespace(exchange=ExchangeSection(), sha256=lambda: "ab" * 32))
    monkeypatch.setattr(receiving, "_open", open_next)
    return receiving


def test_what_strangers_send_does_not_fill_the_log_of_a_good_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And it reads as what it is: an upload that was refused, not a failure of the job."""
    caplog.set_level(logging.INFO, logs.private.name)  # as in a job
    refusal = SealingError(ErrorCode.NO_IDENTITY_MATCH, "for somebody else")
    refusal.__cause__ = ValueError("canary")
    text = StringIO()
    handler = logs.limited_handler(text)
    monkeypatch.setattr(logs.private, "handlers", [handler])
    receiving_job(monkeypatch, tmp_path, [refusal] * 500 + ["opened"], lasts=False)._receive(
        cast("Any", Front()), KEYS
    )
    lines = text.getvalue().splitlines()
    assert len(lines) == logs.MAX_REPEATS
    assert "Traceback" not in text.getvalue()
    assert "an upload was refused: for somebody else (no-identity-match)" in lines[0]
    assert "further" in lines[-1]


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_only_a_file_is_taken_for_an_upload_of_an_earlier_start(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a link the operator would learn the size of a private file, from a public event."""
    receiving = receiving_job(monkeypatch, tmp_path, ["opened"], lasts=True)
    (tmp_path / "private").write_bytes(bytes(4321))
    if kind == "link":
        receiving.ciphertext.dataset.symlink_to("private")
    elif kind == "pipe":
        os.mkfifo(receiving.ciphertext.dataset)
    else:
        receiving.ciphertext.dataset.mkdir()
    assert receiving.ciphertext.dataset_bytes() is None
    monkeypatch.setattr(receiving, "_open", lambda _keys: "opened")
    events: list[object] = []
    receiving.public = events.append  # type: ignore[assignment]
    receiving._receive(cast("Any", Front()), KEYS)
    assert [event.bytes for event in events if isinstance(event, logs.DatasetReceived)] == [1], "the front's"
