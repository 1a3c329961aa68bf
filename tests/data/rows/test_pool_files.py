"""The files of a pool: each provider's are judged by themselves, as that provider judged them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.examples.evaluation_files import is_for_evaluation
from trainer.data.rows import list_row_files
from trainer.errors import DataError
from trainer.spec import DataSection


def files(folder: Path, *names: str) -> dict[str, Path]:
    made = {}
    for number, name in enumerate(names):
        made[name] = folder / str(number)
        made[name].write_text('{"text": "a"}\n')
    return made


def test_files_for_evaluation_are_those_of_each_provider(tmp_path: Path) -> None:
    names = ("provider-01/train.jsonl", "provider-02/eval/x.jsonl", "provider-02/train.jsonl")
    listed = list_row_files(files(tmp_path, *names))
    assert [file.name for file in listed] == list(names)
    assert [is_for_evaluation(name, DataSection()) for name in names] == [False, True, False]


def test_the_splits_of_one_provider_say_nothing_of_another(tmp_path: Path) -> None:
    names = (
        "provider-01/eval/x.jsonl",
        "provider-02/test-00000-of-00001.jsonl",
        "provider-02/train-00000-of-00001.jsonl",
    )
    listed = {file.name: file.for_evaluation for file in list_row_files(files(tmp_path, *names))}
    assert listed == {names[0]: False, names[1]: True, names[2]: False}


def test_an_error_names_the_provider_whose_layout_it_is_about(tmp_path: Path) -> None:
    names = (
        "provider-01/a.jsonl",
        "provider-02/odd-00000-of-00001.jsonl",
        "provider-02/test-00000-of-00001.jsonl",
    )
    made = files(tmp_path, *names)
    made["provider-02/README.md"] = tmp_path / "readme"
    made["provider-02/README.md"].write_text("---\nconfigs: 3\n---\n")
    with pytest.raises(DataError) as caught:
        list_row_files(made)
    assert caught.value.file is not None
    assert caught.value.file.startswith("provider-02/")
