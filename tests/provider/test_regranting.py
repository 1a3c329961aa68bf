"""A submission whose job was restarted: it grants the dataset again, and sends it again only where it has to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, SealingError, UnavailableError, UsageError
from trainer.models import Phase, Status
from trainer.provider.grants import GrantRecord
from trainer.provider.job_events import RegrantRefusedError, watch_job
from trainer.provider.own_files import LocalSecret
from trainer.provider.regranting import Regranting, find_grant_record, send_regrant, wait_regranted
from trainer.provider.submission_directory import SubmissionDirectory
from trainer.provider.submission_request import ProgressReporter, Submission
from trainer.receipt.expected_result import PoolPlace
from trainer.sealing.age import generate_identity, new_file_key, wrap_file_key
from trainer.sealing.bundle import Grant, Manifest, ManifestFile
from trainer.sealing.regrant import parse_regrant

PROVIDER, JOB = generate_identity(hybrid=False), generate_identity()
DATASET_BYTES = 4 << 20
MANIFEST = Manifest(
    version=1, salt="5a" * 32, files={"rows": ManifestFile(sha256="ef" * 32, size=DATASET_BYTES)}
)


def grant_record() -> GrantRecord:
    header = wrap_file_key(new_file_key(), [PROVIDER.recipient()]).decode()
    grant = Grant(
        version=1, job_spec_sha256="ab" * 32, recipients=(str(PROVIDER.recipient()),), expires_at=1,
        secret="cd" * 32,
    )  # fmt: skip
    return GrantRecord(grant=grant, manifest=MANIFEST, rows=1, header=header)


def verdict(name: str) -> Any:
    """A record of a start of the job."""
    recipients = SimpleNamespace(instance=f"{JOB.recipient()}{name}", derived="age1")
    claims = SimpleNamespace(job_spec_sha256="ab" * 32, recipients=recipients)
    result = SimpleNamespace(
        claims=claims,
        recipient=str(JOB.recipient()),
        peer_spki_sha256="ab" * 32,
        require_sealable=lambda _: None,
    )
    return SimpleNamespace(result=result)


class Job:
    """A carrier of a job whose phases a test names; counts what is sent to it."""

    def __init__(self, *statuses: Status) -> None:
        self.statuses = list(statuses)
        self.sent: list[bytes] = []
        self.refusal: ErrorCode | None = None

    def status(self) -> Status:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def events(self, _token: str | None) -> Any:
        yield from self.statuses

    def regrant(self, document: bytes) -> None:
        if self.refusal is not None:
            raise UnavailableError(self.refusal, "refused")
        self.sent.append(document)


WAITING = Status(phase=Phase.AWAITING_GRANT)
REFUSED = Status(phase=Phase.AWAITING_GRANT, error="regrant-invalid")
BROKEN = Status(phase=Phase.AWAITING_DATASET, error="sealed-payload-invalid")


@pytest.fixture
def begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[Regranting, SubmissionDirectory]]:
    """A submission that was uploaded to a start of the job that is gone."""
    secret = LocalSecret(tmp_path / "state" / "secret")
    monkeypatch.setattr(SubmissionDirectory, "save_record", lambda *_: None)
    monkeypatch.setattr(SubmissionDirectory, "is_sealed_to", lambda *_: False)
    monkeypatch.setattr(SubmissionDirectory, "load_restarted", lambda *_: verdict("b"))
    monkeypatch.setattr("trainer.provider.submission_directory.save_record", lambda _: b"{}")

    def begin() -> tuple[Regranting, SubmissionDirectory]:
        directory = SubmissionDirectory(tmp_path / "out.submission", secret, cast("Any", None))
        directory.open_for(b'{"a":"test"}')
        directory.save_grant(grant_record())
        directory.sealed_dataset.write_bytes(bytes(DATASET_BYTES))
        directory.begin_upload()
        directory.uploaded.touch()
        submission = cast("Submission", SimpleNamespace(identities=[PROVIDER], key=None))
        quiet = cast("ProgressReporter", SimpleNamespace(step=print, line=print))
        return Regranting(submission, directory, quiet), directory

    return begin


def test_a_restart_costs_kilobytes_whatever_the_dataset(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    job = Job(WAITING)
    regranting.adopt(verdict("b"), WAITING)
    assert directory.load_grant() is not None
    assert regranting.has_dataset(job, regranting.directory.load_grant())
    assert sum(map(len, job.sent)) < 4096
    regrant = parse_regrant(job.sent[0])
    assert regrant.manifest_sha256 == MANIFEST.sha256()
    assert directory.sealed_dataset.exists()
    assert not regranting.is_restarted
    # The second restart: verified anew, granted anew.
    regranting.adopt(verdict("c"), WAITING)
    assert regranting.has_dataset(job, regranting.directory.load_grant())
    assert parse_regrant(job.sent[1]).instance_sha256 != regrant.instance_sha256


def test_nothing_is_granted_to_a_job_that_was_not_verified_just_now(
    begun: Callable[[], Any],
) -> None:
    """Also where no TLS key tells a restart, and in a later call of the command."""
    regranting, _ = begun()
    job = Job(WAITING)
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            regranting.has_dataset(job, regranting.directory.load_grant())
        assert caught.value.code is ErrorCode.JOB_BUSY
        assert regranting.is_restarted
    regranting.adopt(verdict("b"), WAITING)
    assert regranting.has_dataset(job, regranting.directory.load_grant())
    with pytest.raises(UnavailableError):
        regranting.has_dataset(job, regranting.directory.load_grant())  # waits again: another start
    assert len(job.sent) == 1


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.OPENING])
def test_a_job_that_looks_for_what_it_kept_is_waited_for(
    phase: Phase, begun: Callable[[], Any]
) -> None:
    regranting, directory = begun()
    with pytest.raises(UnavailableError) as caught:
        regranting.adopt(verdict("b"), Status(phase=phase))
    assert caught.value.code is ErrorCode.JOB_BUSY
    assert directory.load_grant() is not None


def test_a_job_that_kept_nothing_gets_the_dataset_again(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    regranting.adopt(verdict("b"), Status(phase=Phase.AWAITING_DATASET))
    assert directory.load_grant() is None
    assert directory.load_earlier_secret() == "cd" * 32


def test_a_job_that_was_granted_by_hand_is_followed(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    regranting.adopt(verdict("b"), Status(phase=Phase.TRAINING))
    job = Job(Status(phase=Phase.TRAINING))
    assert regranting.has_dataset(job, regranting.directory.load_grant())
    assert (job.sent, directory.load_grant() is None) == ([], False)


def test_an_upload_that_can_be_continued_is_not_granted(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    directory.uploaded.unlink()
    directory.upload_state.touch()
    for phase in (Phase.AWAITING_DATASET, Phase.AWAITING_GRANT):
        job = Job(Status(phase=phase))
        assert not regranting.has_dataset(job, regranting.directory.load_grant())
        assert (job.sent, regranting.is_restarted) == ([], False)


def test_refused_re_grants_are_repeated_and_then_the_dataset_is_sent(
    begun: Callable[[], Any],
) -> None:
    """Anybody can have one refused at the same moment; a job that refuses each has another dataset."""
    regranting, directory = begun()
    job = Job(WAITING)
    for attempt in range(3):
        regranting.adopt(verdict("b"), WAITING)
        assert regranting.has_dataset(job, regranting.directory.load_grant())
        with pytest.raises(UnavailableError):
            regranting.judge_refusal(RegrantRefusedError(ErrorCode.REGRANT_INVALID, "refused"))
        assert (directory.load_grant() is None) == (attempt == 2)
    assert not directory.upload_begun.exists()
    assert directory.load_earlier_secret() == "cd" * 32


def test_a_kept_file_that_is_broken_is_sent_again_at_once(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    regranting.adopt(verdict("b"), WAITING)
    regranting.has_dataset(Job(WAITING), regranting.directory.load_grant())
    with pytest.raises(UnavailableError):
        regranting.judge_refusal(SealingError(ErrorCode.PAYLOAD_INVALID, "cut short"))
    assert directory.load_grant() is None


def test_refusals_that_are_not_about_a_re_grant_are_left_alone(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    regranting.judge_refusal(SealingError(ErrorCode.NO_IDENTITY_MATCH, "an upload"))
    regranting.adopt(verdict("b"), WAITING)
    regranting.has_dataset(Job(WAITING), regranting.directory.load_grant())
    regranting.judge_refusal(SealingError(ErrorCode.DATASET_INVALID, "its rows"))
    assert directory.load_grant() is not None


def test_a_job_that_goes_on_meanwhile_is_asked_again(begun: Callable[[], Any]) -> None:
    regranting, _ = begun()
    regranting.adopt(verdict("b"), WAITING)
    job = Job(WAITING)
    job.refusal = ErrorCode.WRONG_PHASE
    with pytest.raises(UnavailableError) as caught:
        regranting.has_dataset(job, regranting.directory.load_grant())
    assert caught.value.code is ErrorCode.JOB_BUSY


def test_the_verdict_on_a_re_grant_is_in_the_status() -> None:
    training = Status(phase=Phase.TRAINING)
    waited = [WAITING, Status(phase=Phase.OPENING), training]
    assert wait_regranted(cast("Any", Job(*waited)), grant_record(), pause=0) == training
    for status in (REFUSED, BROKEN):
        with pytest.raises(SealingError) as caught:
            wait_regranted(cast("Any", Job(WAITING, status)), grant_record(), pause=0)
        assert caught.value.code.value == status.error
        with pytest.raises(SealingError) as watched:
            list(watch_job(cast("Any", Job(WAITING, status)), [], None))
        assert isinstance(watched.value, RegrantRefusedError) == (status is REFUSED)


# a joint job


def joint(grant: GrantRecord, number: int = 2) -> GrantRecord:
    """The same as the grant of one of three providers."""
    place = PoolPlace(number=number, providers=3, own_recipients=(str(PROVIDER.recipient()),))
    return grant.model_copy(update={"pool": place})


@pytest.mark.parametrize(
    ("status", "keeps"),
    [
        (Status(phase=Phase.AWAITING_GRANT, retained=(2, 3)), True),
        (Status(phase=Phase.AWAITING_GRANT, retained=(3,), received=(2,)), True),
        (Status(phase=Phase.AWAITING_DATASET, received=(2,)), True),
        (Status(phase=Phase.AWAITING_GRANT, retained=(1, 3)), False),
        (Status(phase=Phase.AWAITING_DATASET, received=(1,)), False),
        (Status(phase=Phase.TRAINING), True),
    ],
)
def test_a_joint_job_says_whose_dataset_it_kept(
    status: Status, keeps: bool, begun: Callable[[], Any]
) -> None:
    regranting, directory = begun()
    directory.save_grant(joint(directory.load_grant()))
    regranting.adopt(verdict("b"), status)
    assert (directory.load_grant() is not None) == keeps, "otherwise it is sealed anew"


def test_a_provider_of_a_joint_job_grants_its_own_dataset_alone(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    grant = joint(directory.load_grant())
    regranting.adopt(verdict("b"), WAITING.model_copy(update={"retained": (2,)}))
    others = Job(Status(phase=Phase.AWAITING_GRANT, retained=(1,), received=(2,)))
    assert regranting.has_dataset(others, grant)
    assert others.sent == [], "it is in already"
    own = Job(Status(phase=Phase.AWAITING_GRANT, retained=(1, 2)))
    assert regranting.has_dataset(own, grant)
    assert len(own.sent) == 1


def test_another_dataset_that_is_opened_meanwhile_is_no_restart(begun: Callable[[], Any]) -> None:
    regranting, directory = begun()
    single, waits = directory.load_grant(), Status(phase=Phase.AWAITING_GRANT, retained=(2,))
    grant, opening = joint(single), Status(phase=Phase.OPENING)
    for status in (waits, opening, waits, waits.model_copy(update={"retained": (3,)})):
        regranting.require_same_start(status, grant)
    regranting.require_same_start(opening, single)
    regranting.require_same_start(REFUSED, single)  # a refusal: the watch says so
    regranting.require_same_start(Status(phase=Phase.PREPARING), grant)
    with pytest.raises(UnavailableError):
        regranting.require_same_start(waits, grant)


def test_the_verdict_in_a_joint_job_is_about_the_own_dataset() -> None:
    grant, in_it = joint(grant_record()), Status(phase=Phase.AWAITING_GRANT, received=(2,))
    waits = Status(phase=Phase.AWAITING_GRANT, retained=(2,))
    job = Job(waits, Status(phase=Phase.OPENING), waits, in_it)
    assert wait_regranted(cast("Any", job), grant, pause=0) == in_it


def test_the_grant_of_a_submission_or_of_a_sealed_file_is_found(
    begun: Callable[[], Any], tmp_path: Path
) -> None:
    _, directory = begun()
    secret = LocalSecret(tmp_path / "state" / "secret")
    record = directory.load_grant()
    for path in (tmp_path / "out", directory.path):
        assert find_grant_record(path, secret) == record
    file = tmp_path / "sealed.age.grant.json"
    file.write_text(grant_record().model_dump_json())
    assert find_grant_record(file, secret).manifest == MANIFEST
    with pytest.raises(UsageError):
        find_grant_record(tmp_path / "nothing", secret)


def test_the_file_key_is_nowhere_in_the_clear(
    begun: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = b"0123456789abcdef"
    monkeypatch.setattr("tests.provider.test_regranting.new_file_key", lambda: key)
    _, directory = begun()
    forms = (key, key.hex().encode(), b"MDEyMzQ1Njc4OWFiY2RlZg")
    for path in (path for path in directory.path.rglob("*") if path.is_file()):
        assert not any(form in path.read_bytes() for form in forms), path.name
    record = directory.load_grant()
    assert record is not None
    with pytest.raises(SealingError) as caught:
        send_regrant(
            cast("Any", Job(WAITING)), record, verdict("b").result, [generate_identity()], None
        )
    assert caught.value.code is ErrorCode.NO_IDENTITY_MATCH
