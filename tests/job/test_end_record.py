"""The end record: it opens for the same job in the same app only, and nothing put in its place is believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.errors import DATASET_FAULTS, RESUMABLE, ErrorCode
from trainer.job.end_record import MAX_END_RECORD_BYTES, EndRecord, EndRecordFile, PrivacySpent
from trainer.receipt.deletion import DestroyedItem
from trainer.tee.key_derivation import end_record_key

SPEC, COMPOSE = "ab" * 32, "cd" * 32
KEY = end_record_key(b"\1" * 32, job_spec_sha256=SPEC, app_compose_sha256=COMPOSE)


def record(error: ErrorCode | None = None) -> EndRecord:
    return EndRecord(
        error=error,
        result_sha256="12" * 32,
        result_bytes=5,
        dataset_manifest_sha256="34" * 32,
        ended_at=1790000000,
        acknowledgement_sha256=("56" * 32,),
        destroyed=dict.fromkeys(DestroyedItem, 1790000000),
    )


@pytest.fixture
def file(tmp_path: Path) -> EndRecordFile:
    return EndRecordFile(tmp_path / "end.sealed", KEY)


def test_what_is_saved_is_loaded(file: EndRecordFile) -> None:
    assert file.load() is None
    for error in (None, ErrorCode.DATASET_ROW_INVALID):
        file.save(record(error))
        assert file.load() == record(error)
    assert b"dataset" not in file.path.read_bytes(), "the operator cannot read it"


def test_what_private_results_spent_is_added_up_over_starts(file: EndRecordFile) -> None:
    """An operator who takes the result away gets another one trained: both go to the recipients of one grant."""
    one = PrivacySpent(runs=1, epsilon=2.5, delta=1e-5)
    file.save(record().model_copy(update={"privacy": one + one}))
    loaded = file.load()
    assert loaded is not None
    assert loaded.spent_on("34" * 32) == PrivacySpent(runs=2, epsilon=5.0, delta=2e-5)
    assert loaded.spent_on("35" * 32) is None, "another dataset"


@pytest.mark.parametrize(
    "key",
    [
        end_record_key(b"\2" * 32, job_spec_sha256=SPEC, app_compose_sha256=COMPOSE),
        end_record_key(b"\1" * 32, job_spec_sha256="ac" * 32, app_compose_sha256=COMPOSE),
        end_record_key(b"\1" * 32, job_spec_sha256=SPEC, app_compose_sha256="ce" * 32),
    ],
    ids=["key service", "spec", "app"],
)
def test_another_job_cannot_open_it(key: bytearray, file: EndRecordFile) -> None:
    file.save(record())
    assert EndRecordFile(file.path, key).load() is None


def test_no_changed_byte_is_believed(file: EndRecordFile) -> None:
    file.save(record())
    sealed = file.path.read_bytes()
    for place in range(0, len(sealed), 7):
        file.path.write_bytes(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
        assert file.load() is None
    for other in (b"", sealed[:11], sealed[:-1], sealed + b"\0", bytes(MAX_END_RECORD_BYTES * 2)):
        file.path.write_bytes(other)
        assert file.load() is None


def test_what_is_no_file_is_no_record(file: EndRecordFile, tmp_path: Path) -> None:
    file.save(record())
    elsewhere = tmp_path / "elsewhere"
    file.path.rename(elsewhere)
    file.path.symlink_to(elsewhere)
    assert file.load() is None
    file.path.unlink()
    os.mkfifo(file.path)
    assert file.load() is None
    file.path.unlink()
    file.path.mkdir()
    assert file.load() is None


def test_a_job_that_got_no_dataset_to_train_on_leaves_the_checkpoints_of_another() -> None:
    for code in ErrorCode:
        assert record(code).is_without_training is (
            code in DATASET_FAULTS or code is ErrorCode.DATASET_TIMEOUT
        )
    assert not record().is_without_training


def test_only_what_says_nothing_against_the_job_is_gone_on_from() -> None:
    assert record().is_final
    assert record(ErrorCode.DATASET_ROW_INVALID).is_final
    for code in RESUMABLE:
        assert not record(code).is_final
