"""Repositories belong to the splits that `datasets` itself gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns

from trainer.data.rows.row_files import find_splits

REPOSITORIES: dict[str, tuple[object, tuple[str, ...]]] = {
    "patterns": (
        [
            {"split": "train", "path": "data/train-*"},
            {"split": "test", "path": ["held/**/*.csv", "x?.[jc]s*"]},
        ],
        ("data/train-00000-of-00001.parquet", "held/a.csv", "held/deep/b.csv", "xy.jsonl"),
    ),
    "folders below": ([{"split": "train", "path": "**/*.csv"}], ("a.csv", "b/c.csv", "b/d/e.csv")),
    "one pattern": ("rows/*", ("rows/a.jsonl", "rows/b.jsonl")),
    "a list of patterns": (["a.csv", "b/*"], ("a.csv", "b/c.csv")),
    "shards": (
        None,
        (
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002-3f.parquet",
            "data/dev-00000-of-00001.csv",
        ),
    ),
    "names of files": (None, ("train.jsonl", "my-validation_rows.jsonl", "testing.2.jsonl")),
    "names of folders": (None, ("train/a.csv", "valid/train.csv", "eval-1/deep/b.csv")),
    "no names": (None, ("a.csv", "b/latest.csv", "protest.csv")),
}


@pytest.mark.parametrize("title", REPOSITORIES)
def test_files_belong_to_the_splits_that_datasets_gives_them(tmp_path: Path, title: str) -> None:
    data_files, names = REPOSITORIES[title]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    card = {"configs": [{"data_files": data_files}]} if data_files else {"license": "mit"}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    patterns = sanitize_patterns(data_files) if data_files else get_data_patterns(str(tmp_path))
    theirs = {
        Path(path).relative_to(tmp_path).as_posix(): str(split)
        for split, paths in DataFilesDict.from_patterns(patterns, str(tmp_path)).items()
        for path in paths
    }
    files = {name: tmp_path / name for name in (*names, "README.md")}
    ours = {name: _kind(split) for name, split in find_splits(files).items()}
    assert ours == {name: _kind(split) for name, split in theirs.items()}


def _kind(split: str | None) -> str:
    """One name for each kind of split: `datasets` reads `dev` in a name of a file as validation."""
    words = {
        "dev": "validation",
        "valid": "validation",
        "val": "validation",
        "testing": "test",
        "eval": "test",
    }
    return words.get(split or "train", split or "train")
