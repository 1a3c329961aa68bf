"""Which files a provider's folders and names stand for, and how rows are read before they are sealed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.data.rows import RowSchema
from trainer.errors import DataError, ErrorCode, UsageError, VerificationError
from trainer.provider.dataset_files import count_rows, find_data_files, row_schema_for
from trainer.spec import read_job_spec

JOB = f"""\
version: 1
model:
  model_name_or_path: ./m
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
data: {{columns: {{text: story}}}}
"""


def test_folders_keep_their_names_and_hidden_files_stay(tmp_path: Path) -> None:
    for name in ("b.csv", "eval/a.parquet", "eval/deep/c.jsonl.gz", ".git/x", "eval/.DS_Store"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("x")
    (tmp_path / "one.txt").write_text("x")  # named by itself, anything goes
    files = find_data_files([tmp_path / "data", tmp_path / "one.txt"])
    assert sorted(files) == ["b.csv", "eval/a.parquet", "eval/deep/c.jsonl.gz", "one.txt"]
    assert files["eval/a.parquet"] == tmp_path / "data" / "eval" / "a.parquet"


@pytest.mark.parametrize(
    ("names", "asked", "code"),
    [
        ((), ("x.jsonl",), ErrorCode.FILE_NOT_FOUND),
        (("d/.hidden",), ("d",), ErrorCode.FILE_NOT_FOUND),
        (("d/notes.txt",), ("d",), ErrorCode.USAGE),
        (("d/README.md",), ("d",), ErrorCode.USAGE),
        (("a.csv",), ("a.csv", "a.csv"), ErrorCode.USAGE),
        (("d/eval/a.csv", "e/eval/a.csv"), ("d", "e"), ErrorCode.USAGE),
    ],
)
def test_what_is_missing_double_or_no_data_is_refused(
    tmp_path: Path, names: tuple[str, ...], asked: tuple[str, ...], code: ErrorCode
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(UsageError) as caught:
        find_data_files([tmp_path / name for name in asked])
    assert caught.value.code is code


SAVED = ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (("d/a.csv", "a.csv"), ("d", "a.csv"), {"d/a.csv", "TOP/a.csv"}),
        (("a/x.csv", "b/x.csv"), ("a/x.csv", "b/x.csv"), {"a/x.csv", "b/x.csv"}),
        (("a/b/x.csv", "c/b/x.csv", "y.csv"), ("a/b/x.csv", "c/b/x.csv", "y.csv"),
         {"a/b/x.csv", "c/b/x.csv", "UP/TOP/y.csv"}),
        (tuple(f"{folder}/{file}" for folder in ("one", "two") for file in SAVED), ("one", "two"),
         {f"{folder}/{file}" for folder in ("one", "two") for file in SAVED}),
    ],
)  # fmt: skip
def test_files_of_one_name_are_told_apart_by_their_folders(
    tmp_path: Path, names: tuple[str, ...], asked: tuple[str, ...], expected: set[str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    files = find_data_files([tmp_path / name for name in asked])
    places = {"TOP": tmp_path.name, "UP": tmp_path.parent.name}
    assert set(files) == {"/".join(places.get(part, part) for part in name.split("/")) for name in expected}
    assert all(path.as_posix().endswith(name) for name, path in files.items())


def test_side_files_go_along_and_are_no_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "rows").mkdir(parents=True)
    (data / "README.md").write_text("---\nconfigs:\n- data_files: 'rows/*'\n---\n")
    (data / "rows" / "a.jsonl").write_text('{"text": "a"}\n')
    files = find_data_files([data])
    assert sorted(files) == ["README.md", "rows/a.jsonl"]
    assert count_rows(files) == {"text": 1}


def test_rows_are_counted_as_the_job_reads_them(tmp_path: Path) -> None:
    job, data = tmp_path / "job.yaml", tmp_path / "a.csv"
    job.write_text(JOB)
    data.write_text("story\nonce\nupon\n")
    appraised: Any = cast("Any", SimpleNamespace(job_spec_sha256=read_job_spec(job).sha256()))
    assert count_rows({"a.csv": data}, row_schema_for(appraised, job)) == {"text": 2}
    assert row_schema_for(appraised, None) == RowSchema()
    with pytest.raises(DataError, match="1 other keys"):
        count_rows({"a.csv": data})


def test_another_jobs_spec_is_refused(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    appraised: Any = SimpleNamespace(job_spec_sha256="0" * 64)
    with pytest.raises(VerificationError, match="not the spec of the appraised job"):
        row_schema_for(appraised, job)
