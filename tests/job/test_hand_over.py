"""The offer of a finished result, whatever its operator has put beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from trainer.encoding import sha256_hex
from trainer.errors import ExitCode
from trainer.ipc.front_messages import DeletionReady, ResultReady
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.end_record import EndRecord, EndRecordFile
from trainer.job.hand_over import HandOver
from trainer.job.termination import Termination
from trainer.receipt.deletion import DestroyedItem

RESULT = b"sealed"
RECORD = EndRecord(
    error=None,
    result_sha256=sha256_hex(RESULT),
    result_bytes=len(RESULT),
    dataset_manifest_sha256="34" * 32,
    ended_at=1790000000,
    acknowledged=False,
    destroyed=dict.fromkeys(DestroyedItem, 1790000000),
)


class Front:
    """A front whose client acknowledges at once."""

    def __init__(self) -> None:
        self.messages: list[object] = []

    def send(self, message: object) -> None:
        self.messages.append(message)

    def wait_acknowledged(self, _seconds: float) -> bool:
        return True


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
