"""Tables that `datasets` has written: what their columns mean, without a cache, torch or a quoted value."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from trainer.data.rows import ChatRow, CompletionRow, Message, RowSchema, read_files, scan_rows
from trainer.errors import DataError, ErrorCode, UsageError

CANARY = "canary-c07ab5"
PAIRS = [{"prompt": f"Which bay {number}?", "completion": CANARY} for number in range(3)]
TURNS = [{"role": "user", "content": "Which bay?"}, {"role": "assistant", "content": "Nine"}]


def described(table: pa.Table, features: object) -> pa.Table:
    """The table with a description of its columns as `datasets` writes it."""
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def parquet(folder: Path, table: pa.Table) -> Path:
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def arrow(folder: Path, table: pa.Table) -> Path:
    with (
        pa.OSFile(str(folder / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    return folder / "a.arrow"


def rows_of(path: Path, **schema: Any) -> list[object]:
    return list(scan_rows(path, name="a" + path.suffix, schema=RowSchema(**schema)))


@pytest.mark.parametrize("write", [parquet, arrow])
def test_a_label_is_its_name(tmp_path: Path, write: Any) -> None:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])}
    )
    table = pa.table(
        {"prompt": ["a", "b", "c"], "label": [1, 0, None]}, schema=features.arrow_schema
    )
    *rows, missing = rows_of(write(tmp_path, table), columns={"completion": "label"})
    assert [row.completion for row in rows if isinstance(row, CompletionRow)] == ["spam", "ham"]
    assert isinstance(missing, DataError)
    assert missing.found == "prompt", "a label that is null is no column"


def test_a_number_that_is_no_label_is_refused_where_it_is_used(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham"])}
    )
    path = parquet(
        tmp_path, pa.table({"text": ["a", "b"], "label": [0, -1]}, schema=features.arrow_schema)
    )
    assert not any(
        isinstance(row, DataError) for row in rows_of(path, ignored=frozenset({"label"}))
    )
    first, second = rows_of(path, columns={"text": "label"}, ignored=frozenset({"text"}))
    assert not isinstance(first, DataError)
    assert isinstance(second, DataError)
    assert (second.row, second.field, second.found) == (1, "text", "a value that cannot be read")


@pytest.mark.parametrize("item", ["Sequence", "List", "LargeList"])
def test_lists_of_objects_are_messages(tmp_path: Path, item: str) -> None:
    turn = {
        "role": {"dtype": "string", "_type": "Value"},
        "content": {"dtype": "string", "_type": "Value"},
    }
    fields = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))])
    stored: dict[str, tuple[Any, Any]] = {
        "Sequence": ({key: [turn[key] for turn in TURNS] for key in ("role", "content")}, columns),
        "List": (TURNS, pa.list_(fields)),
        "LargeList": (TURNS, pa.large_list(fields)),
    }
    value, type_ = stored[item]
    table = pa.table({"messages": pa.array([value, value], type_)})
    path = arrow(tmp_path, described(table, {"messages": {"feature": turn, "_type": item}}))
    messages = (Message("user", "Which bay?"), Message("assistant", "Nine"))
    assert rows_of(path) == [ChatRow("a.arrow", 0, messages), ChatRow("a.arrow", 1, messages)]


def test_lists_of_different_lengths_are_no_objects(tmp_path: Path) -> None:
    turn = {
        "role": {"dtype": "string", "_type": "Value"},
        "content": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table({"messages": [{"role": ["user"], "content": ["a", CANARY]}]})
    (error,) = rows_of(
        arrow(tmp_path, described(table, {"messages": {"feature": turn, "_type": "Sequence"}}))
    )
    assert isinstance(error, DataError)
    assert (error.field, error.found) == ("messages", "a value that cannot be read")


def test_json_columns_hold_what_their_text_says(tmp_path: Path) -> None:
    features = datasets.Features(
        {"messages": datasets.List(datasets.Json()), "tools": datasets.Json()}
    )
    tools = [{"type": "function", "function": {"name": "bay", "parameters": {"a": 1, "b": "c"}}}]
    saved = datasets.Dataset.from_dict({"messages": [TURNS], "tools": [tools]}, features=features)
    saved.to_parquet(tmp_path / "a.parquet")
    (row,) = rows_of(tmp_path / "a.parquet")
    assert isinstance(row, ChatRow)
    assert (row.messages[1], row.tools) == (Message("assistant", "Nine"), tuple(tools))


def test_what_arrow_alone_stores(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": pa.array(["a", "b"], pa.large_string()),
            "completion": pa.array(["c", "c"]).dictionary_encode(),
            "when": pa.array([datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)] * 2),
            "nothing": pa.nulls(2),
            "nanoseconds": pa.array([1, 2], pa.timestamp("ns")),
            "elsewhere": pa.array([1, 2], pa.timestamp("us", "No/Where")),
        }
    )
    ignored = frozenset({"when", "nanoseconds", "elsewhere"})
    for write in (parquet, arrow):
        path = write(tmp_path, table)
        assert rows_of(path, ignored=ignored) == [
            CompletionRow(f"a{path.suffix}", number, prompt, "c")
            for number, prompt in enumerate("ab")
        ]
    rows = rows_of(
        tmp_path / "a.arrow",
        columns={"text": "when"},
        ignored=frozenset(table.column_names) - {"when"},
    )
    assert all(isinstance(row, DataError) and row.field == "text" for row in rows)


def test_the_index_of_a_data_frame_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    path = parquet(tmp_path, pa.table({"text": ["a"], "__index_level_0__": [7]}))
    (error,) = rows_of(path)
    assert isinstance(error, DataError)
    assert error.found == 'text, the column "__index_level_0__"'
    assert (
        error.hint
        == 'leave out the index of a data frame with data.ignore_columns: ["__index_level_0__"]'
    )
    (row,) = rows_of(path, ignored=frozenset({"__index_level_0__"}))
    assert not isinstance(row, DataError)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([CANARY]), pa.array([CANARY])], names=["text", "text"])
    for write in (parquet, arrow):
        (error,) = rows_of(write(tmp_path, table))
        assert isinstance(error, DataError)
        assert (error.reason, error.found) == (
            "two columns have the same name",
            "1 names for 2 columns",
        )


@pytest.mark.parametrize(
    "metadata",
    [
        CANARY,
        "[]",
        '{"info": 1}',
        json.dumps({"info": {"features": {"text": {"_type": CANARY}}}}),
        '{"info":' * 9999,
    ],
)
def test_a_description_that_datasets_did_not_write_is_refused_unquoted(
    tmp_path: Path, metadata: str
) -> None:
    table = pa.table({"text": ["a"]}).replace_schema_metadata({"huggingface": metadata})
    (error,) = rows_of(parquet(tmp_path, table))
    assert isinstance(error, DataError)
    assert (error.code, error.file) == (ErrorCode.DATASET_INVALID, "a.parquet")
    assert CANARY not in f"{error} {error.expected} {error.found} {error.hint}"
    assert (error.__cause__, error.__context__) == (None, None)


def test_without_datasets_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = parquet(tmp_path, described(pa.Table.from_pylist(PAIRS), {}))
    with pytest.raises(UsageError, match="datasets") as caught:
        read_files({"a.parquet": path}, max_rows=3)
    assert "confidential-trainer[validate]" in (caught.value.hint or "")
    assert read_files({"b.arrow": arrow(tmp_path, pa.Table.from_pylist(PAIRS))}, max_rows=3), (
        "it is not needed here"
    )


READER = """
import sys
from pathlib import Path
from trainer.provider.dataset_files import count_rows, find_data_files
print(dict(count_rows(find_data_files([Path(sys.argv[1])]))), sorted({"torch", "transformers"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_a_saved_dataset_is_read_without_torch_and_leaves_nothing(tmp_path: Path) -> None:
    """A process of its own: this one has imported torch and has written the dataset."""
    home, saved = tmp_path / "home", tmp_path / "saved"
    home.mkdir()
    parts = {split: datasets.Dataset.from_list(PAIRS) for split in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(saved), num_shards={"train": 2, "test": 1})
    before = sorted(path.name for path in saved.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(saved)],
        env={"HOME": str(home), "TMPDIR": str(home)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("{'prompt/completion': 6} []\n", "")
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in saved.rglob("*")) == before


def test_splits_of_a_saved_dataset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = datasets.Dataset.from_list(PAIRS)
    selected = rows.select([2, 0]).with_format("numpy", columns=["prompt"])
    datasets.DatasetDict(train=rows, validation=selected).save_to_disk(str(tmp_path / "saved"))
    files = {
        path.relative_to(tmp_path / "saved").as_posix(): path
        for path in (tmp_path / "saved").rglob("*.*")
    }
    found = read_files(files, max_rows=5)
    capfd.readouterr()
    assert [
        (row.file.split("/")[0], row.index, row.texts[0][-2], row.for_evaluation) for row in found
    ] == [
        ("train", 0, "0", False),
        ("train", 1, "1", False),
        ("train", 2, "2", False),
        ("validation", 0, "2", True),
        ("validation", 1, "0", True),
    ]
