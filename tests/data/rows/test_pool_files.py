"""The files of a pool: each provider's are judged by themselves, as that provider judged them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.examples.evaluation_files import is_for_evaluation
from trainer.data.rows import list_row_files
from trainer.data.rows.reading import scan_files
from trainer.errors import DataError, ErrorCode
from trainer.sealing.archive import require_member_name
from trainer.spec import DataSection
from trainer.spec.pool_names import number_in_pool, pool_name


def files(folder: Path, *names: str) -> dict[str, Path]:
    made = {}
    for number, name in enumerate(names):
        made[name] = folder / str(number)
        made[name].write_text('{"text": "a"}\n')
    return made


def test_a_dataset_with_folders_of_these_names_is_no_pool(tmp_path: Path) -> None:
    """Its provider would choose by a folder's name which rows are held out, and which splits stand alone."""
    names = ("provider-01/eval/x.jsonl", "provider-01/test.jsonl", "provider-02/train.jsonl")
    assert [number_in_pool(name) for name in names] == [None, None, None]
    listed = list_row_files(files(tmp_path, *names))
    assert {file.name: file.for_evaluation for file in listed} == dict.fromkeys(names, False)
    assert not any(is_for_evaluation(name, DataSection()) for name in names)


def test_a_bundle_cannot_have_a_name_of_the_pool() -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        require_member_name("data/" + pool_name(2, "train.jsonl"))


def test_files_for_evaluation_are_those_of_each_provider(tmp_path: Path) -> None:
    names = ("provider-01//train.jsonl", "provider-02//eval/x.jsonl", "provider-02//train.jsonl")
    listed = list_row_files(files(tmp_path, *names))
    assert [file.name for file in listed] == list(names)
    assert [is_for_evaluation(name, DataSection()) for name in names] == [False, True, False]


def test_the_splits_of_one_provider_say_nothing_of_another(tmp_path: Path) -> None:
    names = (
        "provider-01//eval/x.jsonl",
        "provider-02//test-00000-of-00001.jsonl",
        "provider-02//train-00000-of-00001.jsonl",
    )
    listed = {file.name: file.for_evaluation for file in list_row_files(files(tmp_path, *names))}
    assert listed == {names[0]: False, names[1]: True, names[2]: False}


def test_an_error_names_the_provider_whose_layout_it_is_about(tmp_path: Path) -> None:
    names = (
        "provider-01//a.jsonl",
        "provider-02//odd-00000-of-00001.jsonl",
        "provider-02//test-00000-of-00001.jsonl",
    )
    made = files(tmp_path, *names)
    made["provider-02//README.md"] = tmp_path / "readme"
    made["provider-02//README.md"].write_text("---\nconfigs: 3\n---\n")
    with pytest.raises(DataError) as caught:
        list_row_files(made)
    assert caught.value.file is not None
    assert caught.value.file.startswith("provider-02//")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_dataset_without_rows_is_refused_for_its_provider_alone(
    tmp_path: Path, content: str
) -> None:
    made = files(tmp_path, pool_name(1, "a.jsonl"), pool_name(2, "a.jsonl"))
    made[pool_name(2, "a.jsonl")].write_text(content)
    rows = list(scan_files(list_row_files(made), max_rows=9))
    errors = [row for row in rows if isinstance(row, DataError)]
    assert [(error.code, number_in_pool(error.file or "")) for error in errors] == [
        (ErrorCode.DATASET_INVALID, 2)
    ]
