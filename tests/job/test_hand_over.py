"""The offer of a finished result, whatever its operator has put beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from trainer.attestation.result.record import Record
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, ExitCode, JobError, UnavailableError, VerificationError
from trainer.ipc.front_messages import DeletionReady, ResultReady
from trainer.job import hand_over as module
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.end_record import EndRecord, EndRecordFile
from trainer.job.hand_over import MIN_OFFER_SECONDS, HandOver
from trainer.job.result_statements import JobOutcome, ReceiptSigner
from trainer.job.termination import Termination
from trainer.provider.verification import verify_deletion_statement
from trainer.receipt.deletion import DestroyedItem
from trainer.receipt.dsse import public_key_der
from trainer.sealing.age import generate_identity
from trainer.sealing.sealed_result import seal_result
from trainer.simulator.agent import SimulatedQuote, SimulatedVm
from trainer.simulator.appraisal_world import APP_COMPOSE, SEED, World, honest_world
from trainer.simulator.claimed_keys import JOB_SPEC_SHA256, TLS_KEY

RESULT = b"sealed"
RECORD = EndRecord(
    error=None,
    result_sha256=sha256_hex(RESULT),
    result_bytes=len(RESULT),
    dataset_manifest_sha256="34" * 32,
    ended_at=1790000000,
    acknowledgement_sha256=("56" * 32,),
    destroyed=dict.fromkeys(DestroyedItem, 1790000000),
)


class Front:
    """A front whose client acknowledges at once, or never."""

    def __init__(self) -> None:
        self.messages: list[object] = []
        self.is_acknowledged = True
        self.waited = 0.0

    def send(self, message: object) -> None:
        self.messages.append(message)

    def offer_result(self, result: ResultReady) -> None:
        self.messages.append(result)

    def wait_acknowledged(self, seconds: float) -> bool:
        self.waited = seconds
        return self.is_acknowledged


class Agent:
    """The guest agent of one VM, which can be taken away."""

    def __init__(self, vm: SimulatedVm) -> None:
        self._vm = vm
        self.answers = True

    def quote(self, report_data: bytes) -> SimulatedQuote:
        if not self.answers:
            raise UnavailableError(ErrorCode.GUEST_AGENT_UNAVAILABLE, "no answer")
        return self._vm.quote(report_data)


def start_of(vm: SimulatedVm) -> ReceiptSigner:
    """What signs in one start of the job: a key of its own."""
    receipt = ec.generate_private_key(ec.SECP256R1())
    keys = SimpleNamespace(
        receipt=receipt, receipt_public_key=public_key_der(receipt.public_key()).hex()
    )
    spec = SimpleNamespace(sha256=lambda: JOB_SPEC_SHA256)
    return ReceiptSigner(
        cast("Any", Agent(vm)), cast("Any", keys), cast("Any", spec), "ef" * 32, {}
    )


@pytest.fixture
def hand_over(tmp_path: Path) -> HandOver:
    (tmp_path / "result.tar.age").write_bytes(RESULT)
    return HandOver(
        front=cast("Any", Front()),
        signer=start_of(honest_world().vm),
        workspace=cast("Any", None),
        ciphertext=CiphertextDirectory(tmp_path, persistent=True),
        record_file=EndRecordFile(tmp_path / "end.sealed", bytearray(32)),
        linger_seconds=60,
        enter=lambda *_args, **_options: None,
        public=lambda _event: None,
        termination=Termination(),
    )


@pytest.mark.parametrize("name", ["deletion.json", "end.sealed"])
def test_a_finished_result_is_offered_though_a_file_beside_it_cannot_be_written(
    name: str, hand_over: HandOver, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "entry").touch()
    assert hand_over.offer(RECORD) is ExitCode.DONE
    messages = cast("Front", hand_over.front).messages
    assert [type(message) for message in messages] == [DeletionReady, ResultReady, DeletionReady]


def test_a_finished_result_is_offered_though_no_quote_can_be_had(hand_over: HandOver) -> None:
    cast("Agent", hand_over.signer.agent).answers = False
    assert hand_over.offer(RECORD) is ExitCode.DONE
    messages = cast("Front", hand_over.front).messages
    assert [type(message) for message in messages] == [ResultReady], (
        "and no statement that nobody can verify"
    )


def statements(hand_over: HandOver) -> list[bytes]:
    messages = cast("Front", hand_over.front).messages
    return [
        message.statement.encode() for message in messages if isinstance(message, DeletionReady)
    ]


DIGESTS: dict[str, Any] = {
    "result_sha256": RECORD.result_sha256,
    "manifest_sha256": RECORD.dataset_manifest_sha256,
}


def record_of(world: World) -> Record:
    return Record(world.appraise(), world.evidence(), world.collateral, world.policy)


def test_the_statements_of_a_later_start_are_verified_by_their_quotes(hand_over: HandOver) -> None:
    """Neither start has the key that the claims before sealing named."""
    world = honest_world()
    later = replace(hand_over, front=cast("Any", Front()), signer=start_of(world.vm))
    assert (hand_over.offer(RECORD), later.offer(RECORD)) == (ExitCode.DONE, ExitCode.DONE)
    said = [
        verify_deletion_statement(statement, record_of(world), **DIGESTS).predicate.acknowledged
        for statement in (*statements(hand_over), *statements(later))
    ]
    assert said == [False, True, False, True]


def test_a_later_version_of_the_app_cannot_make_a_statement_for_an_earlier_one(
    hand_over: HandOver,
) -> None:
    world = honest_world()
    upgraded = SimulatedVm(
        APP_COMPOSE + " ", SEED, app_id=world.vm.app_id, options=world.vm.options
    )
    later = replace(hand_over, signer=start_of(upgraded))
    later.offer(RECORD)
    with pytest.raises(VerificationError, match="same-vm") as refused:
        verify_deletion_statement(statements(later)[0], record_of(world), **DIGESTS)
    assert refused.value.code is ErrorCode.RECEIPT_MISMATCH


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (
            lambda made, _: made["evidence"]["claims"].update(receipt_key=TLS_KEY),
            ErrorCode.RECEIPT_INVALID,
        ),
        (
            lambda made, _: made["evidence"]["claims"].update(issued_at=1),
            ErrorCode.RECEIPT_MISMATCH,
        ),
        (lambda made, other: made.update(envelope=other["envelope"]), ErrorCode.RECEIPT_MISMATCH),
        (lambda made, other: made.update(evidence=other["evidence"]), ErrorCode.RECEIPT_MISMATCH),
        (lambda made, _: made.update(quote="00"), ErrorCode.RECEIPT_INVALID),
        (lambda made, _: made["evidence"].update(quote="00"), ErrorCode.RECEIPT_MISMATCH),
    ],
    ids=["key", "time", "envelope", "evidence", "more", "quote"],
)
def test_a_statement_that_was_changed_is_refused(
    hand_over: HandOver, change: Callable[[Any, Any], None], code: ErrorCode
) -> None:
    hand_over.offer(RECORD)
    made, other = map(json.loads, statements(hand_over))
    change(made, other)
    with pytest.raises(VerificationError) as refused:
        verify_deletion_statement(json.dumps(made).encode(), record_of(honest_world()), **DIGESTS)
    assert refused.value.code is code


@pytest.mark.parametrize("name", DIGESTS)
def test_a_statement_about_another_job_is_refused(hand_over: HandOver, name: str) -> None:
    hand_over.offer(RECORD)
    with pytest.raises(VerificationError) as refused:
        verify_deletion_statement(
            statements(hand_over)[1], record_of(honest_world()), **DIGESTS | {name: "00" * 32}
        )
    assert refused.value.code is ErrorCode.RECEIPT_MISMATCH


@pytest.mark.parametrize(
    ("place", "offered"),
    [
        (lambda path: path.write_bytes(RESULT), True),
        (lambda path: path.write_bytes(b"another"), False),
        (os.mkfifo, False),
        (os.mkdir, False),
        (lambda path: path.symlink_to("other"), False),
        (lambda path: None, False),
    ],
    ids=["the result", "another", "a FIFO", "a directory", "a link", "nothing"],
)
def test_only_the_recorded_result_is_offered_again(
    place: Callable[[Path], object], offered: bool, hand_over: HandOver, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(RESULT)
    hand_over.ciphertext.result.unlink()
    place(hand_over.ciphertext.result)
    assert hand_over.is_still_offered(RECORD) is offered


NOW = 1_800_000_000
FAILED = RECORD.model_copy(update={"error": ErrorCode.DATASET_INVALID})


@pytest.mark.parametrize(
    ("linger", "ended_at", "seconds"),
    [
        (3600, NOW, 3600),
        (3600, NOW - 1000, 2600),
        (3600, NOW - 3500, MIN_OFFER_SECONDS),
        (3600, NOW - 10**8, MIN_OFFER_SECONDS),
        (60, NOW - 10**8, 60),
        (0, NOW, 0),
        (3600, NOW + 10**8, 3600),
    ],
    ids=["first", "second start", "nearly over", "long outage", "short", "none", "clock set back"],
)
def test_each_start_offers_the_result_for_a_while(
    linger: int, ended_at: int, seconds: float, hand_over: HandOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that was set forward, or a long outage, must not take a finished result from its provider."""
    monkeypatch.setattr("trainer.job.hand_over.time.time", lambda: NOW)
    record = RECORD.model_copy(update={"ended_at": ended_at})
    hand_over.record_file.save(record)
    replace(hand_over, linger_seconds=linger).offer(record)
    assert cast("Front", hand_over.front).waited == seconds


def test_a_failure_that_nobody_acknowledges_does_not_block_the_directory_for_ever(
    hand_over: HandOver,
) -> None:
    """Anyone can upload a dataset that fails for good, and never come back."""
    cast("Front", hand_over.front).is_acknowledged = False
    assert hand_over.is_still_offered(FAILED)
    assert hand_over.offer(FAILED) is ExitCode.JOB
    record = hand_over.record_file.load()
    assert record is not None
    assert not record.acknowledged
    assert not hand_over.is_still_offered(record)


def test_an_offer_that_the_operator_cut_short_was_not_one_in_vain(hand_over: HandOver) -> None:
    cast("Front", hand_over.front).is_acknowledged = False
    hand_over.termination.signalled = True
    hand_over.offer(FAILED)
    record = hand_over.record_file.load()
    assert record is not None
    assert hand_over.is_still_offered(record)


def test_a_result_that_nobody_acknowledged_is_offered_again(hand_over: HandOver) -> None:
    cast("Front", hand_over.front).is_acknowledged = False
    assert hand_over.offer(RECORD) is ExitCode.DONE
    record = hand_over.record_file.load()
    assert record is not None
    assert hand_over.is_still_offered(record)


# between sealing and the offer


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle whose outcome is sealed for real; plaintext and keys are destroyed at once."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "report").write_bytes(b"{}")
    recipient = generate_identity(hybrid=False).recipient()
    monkeypatch.setattr(module, "with_checked_output", lambda outcome, *_: outcome)
    monkeypatch.setattr(module, "gather_result", lambda *_: tree)
    monkeypatch.setattr(
        module, "destroy_plaintext", lambda *_: dict.fromkeys(DestroyedItem, 1790000000)
    )
    return SimpleNamespace(
        grants=(SimpleNamespace(recipients=(str(recipient),), secret="ab" * 32),),
        manifest=SimpleNamespace(sha256=lambda: "34" * 32),
    )


@pytest.fixture
def sealing(hand_over: HandOver, bundle: Any) -> Callable[[], EndRecord]:
    """`seal()` of a job that succeeded."""
    return lambda: hand_over.seal(bundle, JobOutcome(1, 2, {}, None))


REFUSED = JobOutcome(1, 2, {}, JobError(ErrorCode.DATASET_INVALID, "no rows"), refused=True)


@pytest.fixture
def refusing(
    hand_over: HandOver, bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], EndRecord]:
    """`refuse()` of a dataset; its directories are destroyed before its report is offered."""

    def destroy(_workspace: object) -> None:
        assert cast("Front", hand_over.front).messages == []

    monkeypatch.setattr(module, "destroy_try", destroy)
    return lambda: hand_over.refuse(bundle, REFUSED)


def test_the_report_on_a_refused_dataset_is_offered_and_the_job_has_not_ended(
    hand_over: HandOver, refusing: Callable[[], EndRecord]
) -> None:
    report = refusing()
    assert report.error is ErrorCode.DATASET_INVALID
    assert sha256_hex(hand_over.ciphertext.result.read_bytes()) == report.result_sha256
    (offered,) = cast("Front", hand_over.front).messages
    assert isinstance(offered, ResultReady)
    assert (offered.final, offered.sha256) == (False, report.result_sha256)
    assert hand_over.record_file.load() is None, "another start accepts a dataset"
    assert not hand_over.ciphertext.deletion.exists(), "the dataset keys are still needed"


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_job_without_another_dataset_ends_with_its_last_report(
    acknowledged: bool, hand_over: HandOver, refusing: Callable[[], EndRecord]
) -> None:
    front = cast("Any", hand_over.front)
    report = refusing()
    front.has_acknowledgement = front.is_acknowledged = acknowledged
    record = hand_over.give_up(report)
    assert (record.error, record.result_sha256) == (ErrorCode.DATASET_TIMEOUT, report.result_sha256)
    assert set(record.destroyed) == set(DestroyedItem)
    assert hand_over.offer(record) is ExitCode.JOB
    assert (front.waited == 0) is acknowledged, "who has the report is not waited for"
    kept = hand_over.record_file.load()
    assert kept is not None
    assert kept.is_over, "the next start accepts a dataset"


def test_a_link_that_takes_the_place_of_a_result_is_not_followed(
    hand_over: HandOver,
    sealing: Callable[[], EndRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The front may write to the directory: a link would have the supervisor open up and hash its own files."""
    private, moved = tmp_path / "private", tmp_path / "moved"
    private.write_bytes(b"plaintext")
    private.chmod(0o600)

    def swapped(tree: Path, target: Path, recipients: Any) -> Any:
        sealed = seal_result(tree, target, recipients)
        target.rename(moved)
        target.symlink_to(private)
        return sealed

    monkeypatch.setattr(module, "seal_result", swapped)
    record = sealing()
    assert private.stat().st_mode & 0o777 == 0o600
    assert (record.result_sha256, record.result_bytes) == (
        sha256_hex(moved.read_bytes()),
        moved.stat().st_size,
    )
    assert moved.stat().st_mode & 0o777 == 0o644, "the front, another user, reads it"


def test_what_is_hashed_is_what_was_looked_at(
    hand_over: HandOver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_bytes(RESULT)
    hand_over.ciphertext.result.write_bytes(b"another")

    def swap(mode: int) -> bool:
        hand_over.ciphertext.result.unlink(missing_ok=True)
        hand_over.ciphertext.result.symlink_to("other")
        return (mode & 0o170000) == 0o100000

    monkeypatch.setattr("stat.S_ISREG", swap)
    assert not hand_over.is_still_offered(RECORD)


def test_a_start_that_is_killed_while_it_destroys_need_not_train_again(
    hand_over: HandOver, sealing: Callable[[], EndRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, "destroy_plaintext", die)
        with pytest.raises(Killed):
            sealing()
    record = hand_over.record_file.load()
    assert record is not None
    assert hand_over.is_still_offered(record)
    assert record.destroyed == {}, "nothing is claimed that was not done"
    with pytest.raises(JobError):
        hand_over.offer(record)
    destroyed = hand_over.destroy(record)
    assert set(destroyed.destroyed) == set(DestroyedItem)
    assert hand_over.record_file.load() == destroyed
    assert hand_over.offer(destroyed) is ExitCode.DONE


def test_a_result_is_offered_while_its_record_has_no_room(
    hand_over: HandOver, sealing: Callable[[], EndRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is recorded as soon as there is room, not only once it was acknowledged."""
    waited: list[float] = []
    room = [False]
    save = EndRecordFile.save

    def save_if_room(file: EndRecordFile, record: EndRecord) -> None:
        if not room[0]:
            raise UnavailableError(ErrorCode.STORAGE_FULL, "no room")
        save(file, record)

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        assert hand_over.record_file.load() is None or len(waited) == 3
        room[0] = len(waited) == 2
        return len(waited) == 3

    monkeypatch.setattr(EndRecordFile, "save", save_if_room)
    monkeypatch.setattr(hand_over.front, "wait_acknowledged", wait)
    record = sealing()
    assert hand_over.offer(record) is ExitCode.DONE
    assert max(waited[:2]) <= 10 < waited[2] <= 60
