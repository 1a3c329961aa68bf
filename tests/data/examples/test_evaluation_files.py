"""Files for evaluation: those that a pattern matches, and those whose names suggest it."""

from __future__ import annotations

import pytest

from trainer.data.examples.evaluation_files import (
    check_evaluation_files,
    is_for_evaluation,
    split_file_warnings,
)
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection


@pytest.mark.parametrize("pattern", ["./dev/*.jsonl", "valid/*", "TEST.jsonl"])
def test_a_pattern_that_matches_no_file_is_refused(pattern: str) -> None:
    with pytest.raises(DataError, match="no file is for evaluation") as caught:
        check_evaluation_files(
            ["dev/x.jsonl", "test.jsonl", "train.jsonl"], DataSection(eval_files=pattern)
        )
    assert caught.value.code is ErrorCode.DATASET_INVALID
    assert pattern in str(caught.value)


def test_a_pattern_that_matches_or_is_not_named_is_accepted() -> None:
    check_evaluation_files(["a.jsonl", "dev/x.jsonl"], DataSection(eval_files="dev/*"))
    check_evaluation_files(["a.jsonl"], DataSection())
    assert is_for_evaluation("eval/a.jsonl", DataSection())


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["train.jsonl", "test.jsonl", "validation.jsonl"], "test.jsonl, validation.jsonl"),
        (
            ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            "data/test-00000-of-00001.parquet",
        ),
        (["a.csv", "dev/b.csv"], "dev/b.csv"),
        (["a.csv", "squad_val.csv.gz"], "squad_val.csv.gz"),
        (["a", "test1", "test2", "test_3", "test-4", "test-5"], "test-4, test-5, test_3:"),
        (["a", *(f"test-{number}" for number in range(5))], "test-0, test-1, test-2 and 2 more"),
        (["train.jsonl", "unit_test_questions.jsonl", "latest.jsonl"], None),
        (["test.jsonl"], None),
        (["train.jsonl", "eval/test.jsonl"], None),
    ],
)
def test_names_of_evaluation_splits_among_files_that_are_trained_on(
    files: list[str], named: str | None
) -> None:
    warnings = list(split_file_warnings(files, DataSection()))
    assert len(warnings) == (named is not None)
    assert all(warning.startswith(named or "") for warning in warnings)
    assert not list(split_file_warnings(files, DataSection(eval_files="x/*"))), (
        "whoever names files has looked"
    )
