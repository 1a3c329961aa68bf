"""Folders of `save_to_disk` and repositories of a hub: which files hold rows, and which splits are held out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.rows import RowSchema, list_row_files, read_files
from trainer.errors import DataError, ErrorCode

ROW = '{"text": "a"}\n'


def write(folder: Path, contents: Mapping[str, object]) -> dict[str, Path]:
    """Files by their names; what is no text is written as JSON."""
    files = {name: folder / name for name in contents}
    for name, content in contents.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(content if isinstance(content, str) else json.dumps(content))
    return files


def roles(
    folder: Path, contents: Mapping[str, object], eval_files: str = "eval/*"
) -> dict[str, bool]:
    """Each file with rows, and whether it is for evaluation."""
    found = list_row_files(write(folder, contents), eval_files=eval_files)
    assert [file.path for file in found] == [folder / file.name for file in found]
    return {file.name: file.for_evaluation for file in found}


def saved(folder: str, shards: int = 1, split: str | None = None) -> dict[str, object]:
    """What `save_to_disk` writes for one split, with rows in a format that this test can write."""
    names = [f"data-{number:05}-of-{shards:05}.jsonl" for number in range(shards)]
    return {
        f"{folder}state.json": {
            "_data_files": [{"filename": name} for name in names],
            "_split": split,
        },
        f"{folder}dataset_info.json": {"features": {}},
        **{f"{folder}{name}": ROW for name in names},
    }


def saved_dict(*splits: str) -> dict[str, object]:
    found: dict[str, object] = {"dataset_dict.json": {"splits": list(splits)}}
    for split in splits:
        found |= saved(f"{split}/", split=split)
    return found


def test_plain_files_are_what_they_were(tmp_path: Path) -> None:
    contents = {
        "b.csv": "x",
        "a.jsonl": "x",
        "part-00000-of-00002.jsonl": "x",
        "eval/c.json": "x",
        "test/d.json": "x",
    }
    assert roles(tmp_path, contents) == dict.fromkeys(sorted(contents), False)


def test_side_files_of_a_saved_dataset_hold_no_rows(tmp_path: Path) -> None:
    assert roles(tmp_path, saved("", shards=2)) == {
        "data-00000-of-00002.jsonl": False,
        "data-00001-of-00002.jsonl": False,
    }
    beside = {**saved("a/"), "dataset_info.json": [], "other/state.json": [], "more.jsonl": ROW}
    assert roles(tmp_path / "beside", beside) == {
        "a/data-00000-of-00001.jsonl": False,
        "dataset_info.json": False,
        "more.jsonl": False,
        "other/state.json": False,
    }


def test_splits_of_a_dataset_dict(tmp_path: Path) -> None:
    assert roles(tmp_path, saved_dict("train", "validation", "test")) == {
        "test/data-00000-of-00001.jsonl": True,
        "train/data-00000-of-00001.jsonl": False,
        "validation/data-00000-of-00001.jsonl": True,
    }


def test_a_split_without_rows_has_no_files(tmp_path: Path) -> None:
    contents = {
        **saved_dict("train"),
        **saved("test/", shards=0),
        "dataset_dict.json": {"splits": ["train", "test"]},
    }
    assert roles(tmp_path, contents) == {"train/data-00000-of-00001.jsonl": False}


def test_splits_that_were_saved_one_by_one(tmp_path: Path) -> None:
    contents = {**saved("one/", split="train"), **saved("two/", split="test")}
    assert roles(tmp_path, contents) == {
        "one/data-00000-of-00001.jsonl": False,
        "two/data-00000-of-00001.jsonl": True,
    }
    single = saved("", split="train[:10%]")
    assert roles(tmp_path / "single", single) == {"data-00000-of-00001.jsonl": False}


def test_the_job_spec_goes_before_the_splits(tmp_path: Path) -> None:
    contents = saved_dict("train_sft", "test_sft", "test")
    assert set(roles(tmp_path, contents, eval_files="test_sft/*").values()) == {False}


def test_the_rows_say_what_their_split_is_for(tmp_path: Path) -> None:
    rows = read_files(write(tmp_path, saved_dict("train", "test")), max_rows=2)
    assert [(row.file, row.index, row.for_evaluation) for row in rows] == [
        ("test/data-00000-of-00001.jsonl", 0, True),
        ("train/data-00000-of-00001.jsonl", 0, False),
    ]
    by_name = read_files(
        write(tmp_path, saved_dict("train", "test")),
        max_rows=2,
        schema=RowSchema(eval_files="train/*"),
    )
    assert not any(row.for_evaluation for row in by_name), "the pattern decides alone"


CARD = "---\nlicense: mit\nlanguage: [no, en]\nconfigs:\n- config_name: default\n  data_files:\n"


def test_the_card_of_a_repository_maps_splits_to_files(tmp_path: Path) -> None:
    splits = (
        "  - split: train\n    path: data/train-*\n  - split: test\n    path: ['held/**/*.csv']\n"
    )
    card = f"{CARD}{splits}---\n# Data\n"
    contents = {
        "README.md": card,
        "data/train-00000-of-00002.parquet": "x",
        "data/train-00001-of-00002-0b1c.parquet": "x",
        "held/a.csv": "x",
        "held/deep/b.csv": "x",
    }
    assert roles(tmp_path, contents) == {
        "data/train-00000-of-00002.parquet": False,
        "data/train-00001-of-00002-0b1c.parquet": False,
        "held/a.csv": True,
        "held/deep/b.csv": True,
    }


@pytest.mark.parametrize(
    "data_files",
    ["data_files: '*.jsonl'", "data_files: ['*.jsonl']", "data_files: {train: '*.jsonl'}"],
)
def test_other_forms_of_data_files(tmp_path: Path, data_files: str) -> None:
    card = f"---\nconfigs:\n- {data_files}\n  data_dir: rows\n---\n"
    assert roles(tmp_path, {"README.md": card, "rows/a.jsonl": ROW}) == {"rows/a.jsonl": False}


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (
            ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
            "data/test-00000-of-00001.parquet",
        ),
        (("train.jsonl", "my_dev.jsonl"), "my_dev.jsonl"),
        (("train/a.csv", "validation/train.csv"), "validation/train.csv"),
        (("a.csv", "b.csv"), None),
    ],
)
def test_without_patterns_names_name_the_splits(
    tmp_path: Path, names: tuple[str, ...], held: str | None
) -> None:
    contents = {"README.md": "---\nlicense: mit\n---\n", **dict.fromkeys(names, "x")}
    assert roles(tmp_path, contents) == {name: name == held for name in sorted(names)}


def test_names_of_shards_name_splits_without_a_card(tmp_path: Path) -> None:
    contents = dict.fromkeys(
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"), "x"
    )
    assert roles(tmp_path, contents) == {
        "train-00000-of-00001.parquet": False,
        "validation-00000-of-00001.parquet": True,
    }


CONTRADICTIONS: dict[str, tuple[dict[str, object], str, str]] = {
    "a shard is missing": (
        {
            key: content
            for key, content in saved("", shards=2).items()
            if key != "data-00001-of-00002.jsonl"
        },
        "data-00001-of-00002.jsonl",
        "one that is missing",
    ),
    "a shard too many": ({**saved(""), "extra.jsonl": ROW}, "extra.jsonl", "one that is not named"),
    "a path out of the folder": (
        {**saved(""), "state.json": {"_data_files": [{"filename": "../x.jsonl"}]}},
        "../x.jsonl",
        "one that is missing",
    ),
    "no names": ({**saved(""), "state.json": {"_data_files": 3}}, "state.json", "something else"),
    "no JSON": ({**saved(""), "state.json": "{"}, "state.json", "something else"),
    "rows selected by an index": (
        {**saved(""), "state.json": {"_indices_data_files": [{"filename": "i.arrow"}]}},
        "state.json",
        "an index",
    ),
    "a split without a folder": (
        {**saved_dict("train"), "dataset_dict.json": {"splits": ["train", "test"]}},
        "dataset_dict.json",
        "no state.json and dataset_info.json in that folder",
    ),
    "a folder without a split": (
        {**saved_dict("train"), **saved("test/")},
        "dataset_dict.json",
        "a folder that is not named",
    ),
    "splits without names": (
        {**saved_dict("train"), "dataset_dict.json": {"splits": "train"}},
        "dataset_dict.json",
        "something else",
    ),
    "unknown splits": (
        saved_dict("train_sft", "test_sft"),
        "test_sft/data-00000-of-00001.jsonl",
        "test_sft, train_sft",
    ),
    "unknown splits of shards": (
        dict.fromkeys(("train_sft-00000-of-00001.json", "test_sft-00000-of-00001.json"), ROW),
        "test_sft-00000-of-00001.json",
        "test_sft, train_sft",
    ),
    "a file of no split": (
        {
            "README.md": f"{CARD}  - split: train\n    path: a*\n---\n",
            "a.jsonl": ROW,
            "b/a.jsonl": ROW,
        },
        "b/a.jsonl",
        "0",
    ),
    "a file of two splits": (
        {"README.md": "---\nconfigs:\n- data_files: {train: a*, test: '*'}\n---\n", "a.jsonl": ROW},
        "a.jsonl",
        "2",
    ),
    "a file that names no split": (
        {"README.md": "---\na: b\n---\n", "train.jsonl": ROW, "x.jsonl": ROW},
        "x.jsonl",
        "0",
    ),
    "two configurations": (
        {"README.md": "---\nconfigs:\n- data_files: a\n- data_files: b\n---\n", "a": ROW},
        "README.md",
        "2",
    ),
    "configurations of another form": (
        {"README.md": "---\nconfigs:\n- data_files: [{split: train}]\n---\n", "a": ROW},
        "README.md",
        "something else",
    ),
    "a card that does not end": (
        {"README.md": "---\na: b\n", "a": ROW},
        "README.md",
        "something else",
    ),
    "a card that is no YAML": (
        {"README.md": "---\na: b: c\n---\n", "a": ROW},
        "README.md",
        "something else",
    ),
}


@pytest.mark.parametrize("title", CONTRADICTIONS)
def test_contradictions_are_refused_and_named(tmp_path: Path, title: str) -> None:
    contents, file, found = CONTRADICTIONS[title]
    with pytest.raises(DataError) as caught:
        roles(tmp_path, contents)
    error = caught.value
    assert (error.code, error.file, str(error.found)) == (ErrorCode.DATASET_INVALID, file, found)
    assert (error.__cause__, error.__context__) == (None, None)


def test_a_side_file_is_not_read_without_bound(tmp_path: Path) -> None:
    contents = {**saved(""), "state.json": " " * ((1 << 20) + 1)}
    with pytest.raises(DataError, match="too long"):
        roles(tmp_path, contents)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["filename", "split", "x"]), inner)
    ),
    max_leaves=5,
)
side_contents = st.binary(max_size=20) | st.dictionaries(
    st.sampled_from(
        ["splits", "_data_files", "_split", "_indices_data_files", "configs", "data_files"]
    ),
    json_values,
).map(lambda document: json.dumps(document).encode())


@settings(max_examples=40)
@given(
    content=side_contents,
    name=st.sampled_from(["dataset_dict.json", "train/state.json", "README.md"]),
)
def test_any_side_file_is_taken_or_refused(
    content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-side-file"
    files = write(folder, {**saved_dict("train"), "README.md": "---\n{}\n---\n"})
    files[name].write_bytes(b"---\n%b\n---\n" % content if name == "README.md" else content)
    try:
        found = list_row_files(files)
    except DataError as error:
        assert error.code is ErrorCode.DATASET_INVALID  # noqa: PT017 -- either outcome is right
    else:
        assert [file.name for file in found] == ["train/data-00000-of-00001.jsonl"]
