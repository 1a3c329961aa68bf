"""What a submission does when its job, whoever is in between, or its own machine gets in the way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pytest

from tests.provider.crash_points import crash_before
from trainer import encoding
from trainer.attestation.policy import Policy
from trainer.attestation.result.record import Record
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import (
    ErrorCode,
    JobError,
    SealingError,
    TrainerError,
    UnavailableError,
    UsageError,
    VerificationError,
)
from trainer.models import Phase, Status
from trainer.provider import (
    acknowledgement,
    job_wait,
    receipt_record,
    result_steps,
    submission_directory,
)
from trainer.provider import submission as steps
from trainer.provider.grants import GrantRecord
from trainer.provider.own_files import LocalSecret
from trainer.provider.result_check import OpenedResult
from trainer.provider.submission_request import Submission, SubmissionResult
from trainer.receipt.statement import ReceiptOutcome
from trainer.sealing.age import generate_identity
from trainer.sealing.bundle import Grant, Manifest, ManifestFile

IDENTITY = generate_identity(hybrid=False)
RECORD = cast(
    "Record",
    SimpleNamespace(
        result=SimpleNamespace(
            development_root=False,
            cautions=(),
            appraised_at=1,
            expires_at=2**40,
            peer_spki_sha256="ab" * 32,
            recipient="age1",
            checks=(),
            require_pass=lambda _now: None,
            job_spec_sha256="ab" * 32,
        ),
        evidence=SimpleNamespace(app_compose="{}"),
    ),
)
POLICY = cast("Policy", SimpleNamespace(sha256=lambda: "00" * 32))
GRANT = GrantRecord(
    grant=Grant(
        version=1,
        job_spec_sha256="ab" * 32,
        recipients=(str(IDENTITY.recipient()),),
        expires_at=1,
        secret="cd" * 32,
    ),
    manifest=Manifest(
        version=1, salt="5a" * 32, files={"rows.jsonl": ManifestFile(sha256="ef" * 32, size=1)}
    ),
    rows=1,
    header="-",
)


@dataclass
class Job:
    """A job behind a carrier that answers what a test says."""

    outcomes: list[ErrorCode | None]
    while_it_runs: Callable[[], object] = lambda: None
    fails_to_connect: Callable[[], TrainerError | None] = lambda: None
    clock: float = 0.0
    uploads: int = 0
    connections: int = 0
    pulls: int = 0
    lines: list[str] = field(default_factory=list)
    peer_spki_sha256: str | None = None
    answers: Status = field(default_factory=lambda: Status(phase=Phase.FAILED, result_bytes=6))
    statement: bytes | None = None
    answer: bytes | None = None

    def connect(
        self, _source: str, *, wait_seconds: float, pinned_spki_sha256: str | None = None
    ) -> Job:
        assert 10 <= wait_seconds <= 60, (
            "bounded by what is left of the wait; an answer takes a moment"
        )
        self.connections += 1
        assert self.connections < 2000, "it connects without end"
        if pinned_spki_sha256 is not None and (error := self.fails_to_connect()) is not None:
            raise error
        return self

    def status(self) -> Status:
        return self.answers

    def upload(self, *_args: object, **_options: object) -> None:
        self.uploads += 1

    def events(self, _token: str | None) -> Iterator[Status]:
        self.while_it_runs()
        yield self.status()

    def download_result(self, target: Path, *, limit: int, progress: object) -> str:
        del progress
        assert limit == 100
        self.pulls += 1
        target.write_bytes(b"sealed")
        return sha256_hex(b"sealed")

    def deletion_statement(self) -> bytes | None:
        return self.statement

    def acknowledge(self, _acknowledgement: str) -> bytes | None:
        return self.answer

    def open(
        self, _source: Path, _identities: object, target: Path, **_options: object
    ) -> OpenedResult:
        failure = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if failure is ErrorCode.PAYLOAD_INVALID:
            raise SealingError(failure, "not the result")
        (target / "report").mkdir(parents=True)
        error = JobError(failure, "failed") if failure else None
        outcome = ReceiptOutcome.FAILED if failure else ReceiptOutcome.SUCCEEDED
        record: Any = SimpleNamespace(model_dump=lambda mode: {"opened": str(target)})
        record.model_copy = lambda update: record
        statement = SimpleNamespace(outcome=outcome)
        return OpenedResult(target, cast("Any", statement), (), error, record=record)

    # the reporter, and the clock

    def step(self, _title: str) -> None:
        pass

    def line(self, text: str) -> None:
        self.lines.append(text)

    def bytes_done(self, *_args: object) -> None:
        pass

    def phase(self, *_args: object) -> None:
        pass

    def training(self, *_args: object) -> None:
        pass

    def metrics(self, *_args: object) -> None:
        pass

    def monotonic(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        assert self.clock < 10_000, "it waits without end"


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SubmissionResult]:
    for name in ("policy.yaml", "rows.jsonl"):
        (tmp_path / name).write_text(name)

    def seal(*args: object, **_options: object) -> GrantRecord:
        cast("Path", args[3]).write_bytes(b"sealed")
        return GRANT

    def run(job: Job, *, data: str = "rows.jsonl") -> SubmissionResult:
        monkeypatch.setattr(steps, "connect_to_job", job.connect)
        monkeypatch.setattr(result_steps, "open_sealed_result", job.open)
        clock = SimpleNamespace(monotonic=job.monotonic, sleep=job.sleep, time=job.monotonic)
        for module in (steps, job_wait):
            monkeypatch.setattr(module, "time", clock)
        request = Submission(
            [tmp_path / data], "job", tmp_path / "policy.yaml", [IDENTITY], tmp_path / "out", tmp_path,
            secret=LocalSecret(tmp_path / "state" / "secret"), max_result_bytes=100, wait_seconds=60,
        )  # fmt: skip
        return steps.run_submission(request, job)

    monkeypatch.setattr(steps, "appraise_job", lambda *_args, **_options: RECORD)
    monkeypatch.setattr(steps, "read_policy", lambda _path: POLICY)
    monkeypatch.setattr(steps, "seal_dataset", seal)
    monkeypatch.setattr(submission_directory, "save_record", lambda _record: b"{}")
    monkeypatch.setattr(submission_directory, "load_record", lambda _data, **_options: RECORD)
    return run


def test_a_result_is_not_lost_when_its_place_was_taken_meanwhile(
    submit: Callable[..., SubmissionResult], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(UsageError) as caught:
        submit(Job([None], while_it_runs=output.mkdir))
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert not any(output.iterdir())
    output.rmdir()
    again = Job([None])
    assert submit(again).result.folder == output
    assert (again.uploads, (output / "report").is_dir()) == (0, True)
    assert (tmp_path / "out.record" / "record.json").is_file()


def test_a_report_of_an_interruption_is_not_pulled_for_ever(
    submit: Callable[..., SubmissionResult], tmp_path: Path
) -> None:
    """A spool shows the end of the earlier start until the job is started again, which may never be."""
    with pytest.raises(UnavailableError):
        submit(Job([ErrorCode.INTERRUPTED]))
    assert {path.name for path in tmp_path.glob("out.failure-*")} == {
        "out.failure-1",
        "out.failure-1.record",
    }


def test_a_job_that_always_has_another_key_is_not_appraised_for_ever(
    submit: Callable[..., SubmissionResult],
) -> None:
    mismatch = VerificationError(ErrorCode.TLS_KEY_MISMATCH, "another key")
    job = Job([None], fails_to_connect=lambda: mismatch)
    with pytest.raises(VerificationError):
        submit(job)


@pytest.mark.parametrize("code", [ErrorCode.NO_IDENTITY_MATCH, ErrorCode.UNAUTHORIZED])
@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_job_in_a_spool_that_was_started_again_gets_the_dataset_anew(
    code: ErrorCode,
    is_restarted: bool,
    submit: Callable[..., SubmissionResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files show no TLS key that would change: all that tells is that the job cannot open what it was sent."""
    first, later = "age1 first", "age1 second" if is_restarted else "age1 first"
    recipients = [first, *[later] * 9]

    def record(recipient: object) -> Any:
        changed = SimpleNamespace(**{**vars(RECORD.result), "recipient": recipient})
        return SimpleNamespace(result=changed, evidence=RECORD.evidence)

    monkeypatch.setattr(steps, "appraise_job", lambda *_args, **_options: record(recipients.pop(0)))
    monkeypatch.setattr(
        submission_directory,
        "save_record",
        lambda record: canonical_json({"recipient": record.result.recipient}),
    )
    monkeypatch.setattr(
        submission_directory,
        "load_record",
        lambda data, **_options: record(json.loads(data)["recipient"]),
    )
    refusals = [SealingError(code, "the job could not open the dataset")]

    def refuse() -> None:
        if refusals:
            raise refusals.pop()

    job = Job([None], while_it_runs=refuse)
    if is_restarted:
        assert submit(job).result.failure is None
        assert job.uploads == 2
    else:
        with pytest.raises(SealingError):
            submit(job)
        assert job.uploads == 1


def test_a_submission_that_failed_and_is_under_way_again_is_not_given_up(
    submit: Callable[..., SubmissionResult], tmp_path: Path
) -> None:
    (tmp_path / "other.jsonl").write_text("other")
    submit(Job([ErrorCode.DATASET_INVALID]))
    lost = Job([None], while_it_runs=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        submit(lost)
    assert lost.uploads == 1
    with pytest.raises(UsageError, match="under way"):
        submit(Job([None]), data="other.jsonl")
    assert (tmp_path / "out.submission" / "grant.json").exists()


@pytest.mark.parametrize("has_report", [True, False])
def test_a_refused_dataset_is_mended_and_sent_by_the_same_command(
    has_report: bool, submit: Callable[..., SubmissionResult], tmp_path: Path
) -> None:
    """Nothing of the refused one is in its way, whether its report could be pulled or was replaced by another."""
    (tmp_path / "mended.jsonl").write_text("mended")
    refusal = Status(
        phase=Phase.AWAITING_DATASET,
        error="dataset-row-invalid",
        result_bytes=7 if has_report else None,
    )
    job = Job([ErrorCode.DATASET_ROW_INVALID], answers=refusal)
    if has_report:
        assert submit(job).result.failure is not None
        assert (
            "  the job waits for another dataset: mend this one, and repeat the command"
            in job.lines
        )
        assert not any("destroyed" in line for line in job.lines), "it states nothing yet"
    else:
        with pytest.raises(SealingError, match="refused this sealed dataset before"):
            submit(job)
    mended = Job([None])
    assert submit(mended, data="mended.jsonl").result.failure is None
    assert mended.uploads == 1
    assert not (tmp_path / "out.submission").exists()


def test_a_result_that_does_not_open_is_pulled_again(
    submit: Callable[..., SubmissionResult],
) -> None:
    job = Job([ErrorCode.PAYLOAD_INVALID, None])
    with pytest.raises(SealingError):
        submit(job)
    assert submit(job).result.failure is None
    assert (job.uploads, job.pulls) == (1, 2)


@pytest.mark.parametrize("statement", [b"honest", None])
def test_a_forged_answer_to_the_acknowledgement_costs_neither_result_nor_statement(
    submit: Callable[..., SubmissionResult],
    statement: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anybody can write `deletion.json` to a spool, once the acknowledgement is there."""

    def verify(document: bytes, *_args: object, **_options: object) -> str:
        if document != b"honest":
            raise VerificationError(ErrorCode.RECEIPT_INVALID, "forged")
        return "verified"

    monkeypatch.setattr(acknowledgement, "verify_deletion_statement", verify)
    monkeypatch.setattr(receipt_record, "parse_attested_envelope", lambda document, what: document)
    job = Job([None], statement=statement, answer=b"forged")
    ended = submit(job)
    assert "no valid answer to the acknowledgement: forged" in job.lines
    assert (tmp_path / "out" / "report").is_dir()
    assert not (tmp_path / "out.submission").exists()
    kept = tmp_path / "out.deletion.json"
    assert (ended.deletion, kept.exists()) == (("verified", True) if statement else (None, False))
    assert not statement or kept.read_bytes() == statement


@pytest.mark.parametrize("outcome", [None, ErrorCode.DATASET_INVALID])
def test_a_result_is_hashed_by_its_download_alone(
    outcome: ErrorCode | None,
    submit: Callable[..., SubmissionResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have gigabytes."""
    hashed: list[str] = []

    def hash_stream(stream: BinaryIO) -> str:
        hashed.append(Path(stream.name).name)
        return sha256_hex(stream.read())

    monkeypatch.setattr(encoding, "stream_sha256", hash_stream)
    submit(Job([outcome]))
    assert "result.tar.age" not in hashed


@pytest.mark.parametrize(
    "outcomes", [[None], [ErrorCode.INTERRUPTED, None]], ids=["undisturbed", "interrupted"]
)
def test_killed_before_any_change_of_a_file_the_same_command_finishes(
    submit: Callable[..., SubmissionResult],
    tmp_path: Path,
    outcomes: list[ErrorCode | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each moment that a kill can tell from another one: the result is in place, and nothing else is left."""
    # Takes most of the time, and no kill sees it.
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    change, crashed = 0, True
    while crashed:
        change += 1
        crashed = crash_before(change, tmp_path, lambda: submit(Job(outcomes)))
        was_finished = (tmp_path / "out").exists() and not (tmp_path / "out.submission").exists()
        if not was_finished:
            assert submit(Job([None])).result.failure is None, change
        left = {
            path.name
            for path in tmp_path.iterdir()
            if path.name[0] != "." and ".failure-" not in path.name
        }
        assert left == {"out", "out.record", "policy.yaml", "rows.jsonl", "state"}, change
        assert (tmp_path / "out" / "report").is_dir()
        assert (tmp_path / "out.record" / "record.json").is_file()
        for path in tmp_path.glob("out*"):
            shutil.rmtree(path)
    assert change > 20
