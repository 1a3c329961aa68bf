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
        (("d/a.csv", "a.csv"), ("d", "a.csv"), ErrorCode.USAGE),
    ],
)
def test_what_is_missing_double_or_no_data_is_refused(
    tmp_path: Path, names: tuple[str, ...], asked: tuple[str, ...], code: ErrorCode
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(UsageError) as caught:
        find_data_files([tmp_path / name for name in asked])
    assert caught.value.code is code


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
