"""What the supervisor leaves in the ciphertext directory for another start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, ExitCode
from trainer.job import supervisor as module
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.end_record import EndRecord
from trainer.receipt.deletion import DestroyedItem

RECORD = EndRecord(
    error=None,
    result_sha256="12" * 32,
    result_bytes=1,
    dataset_manifest_sha256="34" * 32,
    ended_at=1790000000,
    acknowledgement_sha256=("56" * 32,),
    destroyed=dict.fromkeys(DestroyedItem, 1790000000),
)
CHECKPOINT = f"checkpoint-{'0' * 16}-{'1' * 16}.age"


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (None, set()),
        (ErrorCode.TRAINING_DIVERGED, set()),
        (ErrorCode.DATASET_ROW_INVALID, {CHECKPOINT}),
        (ErrorCode.DATASET_TIMEOUT, {CHECKPOINT}),
        (ErrorCode.INTERRUPTED, {CHECKPOINT, "dataset.age"}),
    ],
    ids=lambda value: getattr(value, "value", None),
)
def test_a_dataset_that_was_refused_goes_and_the_checkpoints_of_another_stay(
    error: ErrorCode | None, left: set[str], tmp_path: Path
) -> None:
    """A bad dataset must not cost the provider whose training was interrupted before its progress."""
    for name in (CHECKPOINT, "dataset.age"):
        (tmp_path / name).touch()
    job = module._Job.__new__(module._Job)
    job.ciphertext = CiphertextDirectory(tmp_path, persistent=True)
    hand_over = cast("Any", SimpleNamespace(offer=lambda _record: ExitCode.JOB))
    job._offer(hand_over, RECORD.model_copy(update={"error": error}))
    assert {path.name for path in tmp_path.iterdir()} == left
    assert job.can_go_on is (error is ErrorCode.INTERRUPTED)
