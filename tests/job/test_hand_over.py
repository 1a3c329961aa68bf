"""The offer of a finished result, whatever its operator has put beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, ExitCode
from trainer.ipc.front_messages import DeletionReady, ResultReady
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.end_record import EndRecord, EndRecordFile
from trainer.job.hand_over import MIN_OFFER_SECONDS, HandOver
from trainer.job.termination import Termination
from trainer.receipt.deletion import DestroyedItem

RESULT = b"sealed"
RECORD = EndRecord(
    error=None,
    result_sha256=sha256_hex(RESULT),
    result_bytes=len(RESULT),
    dataset_manifest_sha256="34" * 32,
    ended_at=1790000000,
    acknowledgement_sha256="56" * 32,
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


@pytest.fixture
def hand_over(tmp_path: Path) -> HandOver:
    spec = SimpleNamespace(sha256=lambda: "ab" * 32)
    keys = SimpleNamespace(receipt=ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "result.tar.age").write_bytes(RESULT)
    return HandOver(
        front=cast("Any", Front()),
        signer=cast("Any", SimpleNamespace(spec=spec, keys=keys)),
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
    replace(hand_over, linger_seconds=linger).offer(RECORD.model_copy(update={"ended_at": ended_at}))
    assert cast("Front", hand_over.front).waited == seconds


def test_a_failure_that_nobody_acknowledges_does_not_block_the_directory_for_ever(hand_over: HandOver) -> None:
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
