"""Which files a provider's folders and names stand for, and how rows are read before they are sealed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.data.examples.example_set import row_schema
from trainer.errors import DataError, ErrorCode, UsageError
from trainer.provider.dataset_files import count_rows, find_data_files
from trainer.provider.grants import seal_dataset
from trainer.spec import parse_job_spec, read_job_spec

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
        (("d/adapter/a.csv",), ("d",), ErrorCode.USAGE),
        (("d/adapter/adapter_config.json",), ("d",), ErrorCode.USAGE),
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
    assert set(files) == {
        "/".join(places.get(part, part) for part in name.split("/")) for name in expected
    }
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
    data = tmp_path / "a.csv"
    data.write_text("story\nonce\nupon\n")
    assert count_rows({"a.csv": data}, row_schema(parse_job_spec(JOB.encode()).data)) == {"text": 2}
    with pytest.raises(DataError, match="1 other keys"):
        count_rows({"a.csv": data})


OPENED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)
"""What `trainer open` may leave in an adapter's directory."""


def write_adapter_dir(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def test_the_adapter_of_a_result_is_taken_as_it_lies(tmp_path: Path) -> None:
    adapter = write_adapter_dir(tmp_path / "result" / "adapter", *OPENED)
    (tmp_path / "a.csv").write_text("x")
    assert find_data_files([tmp_path / "a.csv"], adapter) == {
        "a.csv": tmp_path / "a.csv",
        "adapter/adapter_config.json": adapter / "adapter_config.json",
        "adapter/adapter_model.safetensors": adapter / "adapter_model.safetensors",
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "no such directory"),
        (OPENED[:1], "adapter_model.safetensors"),
        (OPENED[1:], "adapter_config.json"),
        (("adapter/adapter_config.json", "receipt.json"), "the directory"),
        ((*OPENED, "adapter_model.bin"), "adapter_model.bin"),
        ((*OPENED, "optimizer.pt"), "optimizer.pt"),
        (
            (*OPENED, "checkpoint-10/adapter_model.safetensors"),
            "checkpoint-10/adapter_model.safetensors",
        ),
        ((*OPENED, ".git/hooks/x.py"), ".git/hooks/x.py"),
    ],
)
def test_another_directory_is_no_adapter(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_data_files([], write_adapter_dir(tmp_path / "d", *names))
    assert said in f"{caught.value} {caught.value.hint}"


def seal(files: dict[str, Path], job: Path | None, tmp_path: Path) -> None:
    spec = read_job_spec(job) if job else None
    seal_dataset(files, cast("Any", SimpleNamespace()), [], tmp_path / "sealed.age", spec=spec)


def test_an_adapter_is_not_sealed_to_a_job_that_would_not_take_it(tmp_path: Path) -> None:
    """Before anything is written: the job would refuse it, after the upload."""
    adapter = write_adapter_dir(tmp_path / "adapter", *OPENED)
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"story": "x"}\n')
    files = find_data_files([rows], adapter)
    with pytest.raises(UsageError, match="--adapter needs the job's spec"):
        seal(files, None, tmp_path)
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    with pytest.raises(DataError, match=r"lora\.start_from"):
        seal(files, job, tmp_path)
    job.write_text(JOB + "lora: {start_from: adapter}\n")
    with pytest.raises(DataError, match=r"the adapter is not there"):
        seal({"a.jsonl": rows}, job, tmp_path)
    with pytest.raises(DataError, match=r"adapter_config\.json: the file cannot be read"):
        seal(files, job, tmp_path)
    assert not (tmp_path / "sealed.age").exists()
