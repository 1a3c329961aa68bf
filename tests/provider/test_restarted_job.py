"""What a submission does with a job that is restarted at a bad moment: it waits and asks again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, UnavailableError
from trainer.models import Phase, Status
from trainer.provider import submission as steps
from trainer.provider.own_files import LocalSecret
from trainer.provider.submission_request import ProgressReporter, Submission
from trainer.sealing.age import generate_identity

RECORD = SimpleNamespace(result=SimpleNamespace(peer_spki_sha256="ab" * 32, recipient="age1"))
GRANT = SimpleNamespace(is_in=lambda _status: False, needs_regrant=lambda _: False, number=None)
JOINT_GRANT = SimpleNamespace(
    is_in=lambda status: 2 in status.received, needs_regrant=lambda _: False, number=2
)


class Job:
    """A carrier of a job whose phases a test names."""

    def __init__(self, *phases: Phase, peer: str | None = "ab" * 32) -> None:
        self.phases = list(phases)
        self.peer_spki_sha256 = peer
        self.refusal: ErrorCode | None = None

    def status(self) -> Status:
        return Status(
            phase=self.phases.pop(0) if len(self.phases) > 1 else self.phases[0], result_bytes=6
        )

    def upload(self, *_: object, **__: object) -> None:
        if self.refusal is not None:
            raise UnavailableError(self.refusal, "refused")


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], Any]:
    """A submission's run that talks to a job of the test, and never sleeps."""
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "policy.yaml").write_text("version: 1\n")

    def begin(job: Job) -> Any:
        monkeypatch.setattr(steps, "connect_to_job", lambda *_, **__: job)
        monkeypatch.setattr(
            steps, "read_policy", lambda _: SimpleNamespace(sha256=lambda: "00" * 32)
        )
        monkeypatch.setattr("trainer.provider.submission.time.sleep", lambda _: None)
        submission = Submission(
            [tmp_path / "data.jsonl"], "https://127.0.0.1:1", tmp_path / "policy.yaml",
            [generate_identity(hybrid=False)], tmp_path / "result", tmp_path,
            LocalSecret(tmp_path / "state" / "secret"), 100, wait_seconds=0.0,
        )  # fmt: skip
        quiet = cast(
            "ProgressReporter", SimpleNamespace(step=print, line=print, bytes_done=lambda *_: None)
        )
        run = steps._SubmissionRun(submission, quiet)
        run._directory.open_for(b'{"a":"test"}')
        return run

    return begin


@pytest.mark.parametrize("code", [ErrorCode.JOB_UNREACHABLE, ErrorCode.STORE_UNAVAILABLE])
@pytest.mark.parametrize(("peer", "known"), [(None, False), ("ab" * 32, True)])
def test_a_job_that_ended_while_it_prepared_is_waited_for(
    peer: str | None,
    known: bool,
    code: ErrorCode,
    begin: Callable[[Job], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = begin(Job(Phase.PREPARING, peer=peer))
    waits: list[str] = []

    def unreachable(*_: object, **__: object) -> None:
        raise UnavailableError(code, "gone")

    monkeypatch.setattr(steps, "appraise_job", unreachable)
    monkeypatch.setattr(steps, "submission_identity", lambda *_: b'{"a":"test"}')
    waiting = SimpleNamespace(
        remaining=lambda: 0.0,
        wait_after=lambda error: waits.append(error.code) if len(waits) < 3 else end(),
    )
    monkeypatch.setattr(run, "_job_wait", waiting)
    with pytest.raises(KeyboardInterrupt if known else UnavailableError):
        run.run()
    assert len(waits) == (3 if known else 0)


def end() -> None:
    raise KeyboardInterrupt


def test_a_restarted_job_that_is_about_to_offer_its_result_keeps_its_dataset(
    begin: Callable[[Job], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has evidence before the front has the result: what was sealed must not be given up in between."""
    run = begin(Job(Phase.STARTING, Phase.AWAITING_PULL))
    adopted: list[bool] = []
    monkeypatch.setattr(run, "_appraise", lambda: RECORD)
    monkeypatch.setattr(
        run._directory,
        "adopt_restarted_job",
        lambda _record, *, keeps_dataset: adopted.append(keeps_dataset),
    )
    with pytest.raises(UnavailableError) as caught:
        run._adopt_restarted_job()
    assert caught.value.code is ErrorCode.JOB_BUSY
    run._adopt_restarted_job()
    assert adopted == [True]


def refusal_of_upload(run: Any, job: Job, grant: object, *, begun: bool) -> ErrorCode:
    """The code with which a submission goes on after a job has refused to take its dataset."""
    job.refusal = ErrorCode.WRONG_PHASE
    run._directory.sealed_dataset.write_bytes(b"sealed")
    if begun:
        run._directory.upload_begun.touch()
    with pytest.raises(UnavailableError) as caught:
        run._upload(job, RECORD, grant)
    return caught.value.code


@pytest.mark.parametrize(
    ("begun", "code"), [(True, ErrorCode.JOB_BUSY), (False, ErrorCode.WRONG_PHASE)]
)
def test_a_job_that_opens_what_it_kept_is_asked_again(
    begun: bool, code: ErrorCode, begin: Callable[[Job], Any]
) -> None:
    job = Job(Phase.PREPARING)
    run = begin(job)
    assert refusal_of_upload(run, job, GRANT, begun=begun) is code
    job.phases = [Phase.OPENING]
    run._upload(job, RECORD, GRANT)
    assert run._directory.uploaded.exists()


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("asked_early", [True, False])
def test_a_joint_job_that_opens_the_dataset_of_another_provider_is_asked_again(
    begun: bool, asked_early: bool, begin: Callable[[Job], Any]
) -> None:
    """It takes none in that moment; nor does it have this one because it has one."""
    job = Job(Phase.AWAITING_DATASET if asked_early else Phase.OPENING)
    run = begin(job)
    assert refusal_of_upload(run, job, JOINT_GRANT, begun=begun) is ErrorCode.JOB_BUSY
    assert not run._directory.uploaded.exists()
    job.phases, job.refusal = [Phase.AWAITING_DATASET], None
    run._upload(job, RECORD, JOINT_GRANT)
    assert run._directory.uploaded.exists()
