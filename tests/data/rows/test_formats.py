"""Files of every format hold the same rows, are read in bounded memory, and fail without a word of it."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import traceback
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.rows import (
    ChatRow,
    CompletionRow,
    Message,
    Row,
    RowSchema,
    TextRow,
    read_files,
    read_rows,
    scan_rows,
)
from trainer.errors import DataError, ErrorCode, UsageError

CANARY = "canary-7f3a9c"

CHATS: list[dict[str, object]] = [
    {
        "messages": [
            {"role": "user", "content": f"Fråga {number}?"},
            {"role": "assistant", "content": "Svar\n2"},
        ]
    }
    for number in range(3)
]
PAIRS: list[dict[str, object]] = [
    {"prompt": f'a, "{number}"', "completion": "b\nc"} for number in range(3)
]

Content = list[dict[str, object]]


def lines(rows: Content) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: Content) -> pa.Table:
    return pa.Table.from_pylist(rows)


def separated(rows: Content, delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    cells = [
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
        for row in rows
    ]
    writer.writerows(cells)
    return out.getvalue().encode()


def as_list(rows: Content) -> bytes:
    return json.dumps(rows).encode()


def parquet(rows: Content) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table(rows), sink)
    return bytes(sink.getvalue())


def stream(rows: Content) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table(rows).schema) as writer:
        writer.write_table(table(rows))
    return bytes(sink.getvalue())


def feather(rows: Content) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(table(rows), sink, compression="uncompressed")
    return sink.getvalue()


FORMATS: dict[str, Callable[[Content], bytes]] = {
    "rows.jsonl": lines,
    "lines-by-another-name.json": lines,
    "no-ending": lines,
    "list.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "data.json": lambda rows: json.dumps({"data": rows}).encode(),
    "rows.csv": lambda rows: separated(rows, ","),
    "excel.csv": lambda rows: b"\xef\xbb\xbf" + separated(rows, ","),
    "rows.tsv": lambda rows: separated(rows, "\t"),
    "rows.parquet": parquet,
    "stream.arrow": stream,
    "file.feather": feather,
    "rows.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "list.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "rows.csv.gz": lambda rows: gzip.compress(separated(rows, ",")),
}


TEXTS: list[dict[str, object]] = [{"text": 'Första raden, "citat"\n\n  a\tb'}]

ONE_DOCUMENT: dict[str, Callable[[Content], bytes]] = {
    "document.txt": lambda rows: str(rows[0]["text"]).encode(),
    "lines-at-the-end.TXT": lambda rows: str(rows[0]["text"]).encode() + b"\r\n\n",
    "notepad.txt": lambda rows: b"\xef\xbb\xbf" + str(rows[0]["text"]).encode(),
    "notepad-unicode.txt": lambda rows: str(rows[0]["text"]).encode("utf-16"),
    "document.txt.gz": lambda rows: gzip.compress(str(rows[0]["text"]).encode()),
}


def expected(rows: Content, name: str) -> list[Row]:
    return list(read_rows_of(lines(rows), name))


def read_rows_of(content: bytes, name: str, folder: Path | None = None) -> list[Row]:
    from trainer.data.rows import parse_row

    if folder is None:
        return [
            parse_row(line, file=name, index=index)
            for index, line in enumerate(content.splitlines())
        ]
    (folder / name).write_bytes(content)
    return list(read_rows(folder / name, name=name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [CHATS, PAIRS], ids=["messages", "pairs"])
def test_every_format_holds_the_same_rows(tmp_path: Path, name: str, rows: Content) -> None:
    assert read_rows_of(FORMATS[name](rows), name, tmp_path) == expected(rows, name)


@pytest.mark.parametrize("name", FORMATS | ONE_DOCUMENT)
def test_every_format_holds_the_same_text(tmp_path: Path, name: str) -> None:
    assert read_rows_of((FORMATS | ONE_DOCUMENT)[name](TEXTS), name, tmp_path) == expected(
        TEXTS, name
    )


def test_keys_that_a_table_fills_with_null_are_none(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    rows: Content = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "1", "tool_call_id": "c"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        *CHATS[:1],
    ]
    assert read_rows_of(parquet(rows), "a.parquet", tmp_path) == expected(rows, "a.parquet")


CUT: dict[str, tuple[Callable[[bytes], bytes], ErrorCode]] = {
    "a.parquet": (lambda data: data[:-9], ErrorCode.DATASET_INVALID),
    "b.parquet": (lambda data: data[:4] + b"\xff" * 60 + data[64:], ErrorCode.DATASET_INVALID),
    "c.arrow": (lambda data: data[: len(data) // 2], ErrorCode.DATASET_INVALID),
    "d.feather": (lambda data: data[:-4], ErrorCode.DATASET_INVALID),
    "e.jsonl.gz": (lambda data: data[:-12], ErrorCode.DATASET_INVALID),
    "f.jsonl.gz": (lambda data: lines(CHATS), ErrorCode.DATASET_INVALID),
    "g.json": (lambda data: data[:-1], ErrorCode.DATASET_INVALID),
    "h.json": (lambda data: data[:-3], ErrorCode.DATASET_ROW_INVALID),
    "i.json": (lambda data: data + b"x", ErrorCode.DATASET_INVALID),
    "j.json": (lambda data: data.replace(b"text", b"\xff", 1), ErrorCode.DATASET_INVALID),
    "k.json": (lambda data: b"[1]", ErrorCode.DATASET_ROW_INVALID),
    "l.json": (lambda data: b'[{"text": NaN}]', ErrorCode.DATASET_ROW_INVALID),
    "m.json": (lambda data: b'[{"text": "a", "text": "b"}]', ErrorCode.DATASET_ROW_INVALID),
    "n.csv": (lambda data: b'text\n"a" b\n', ErrorCode.DATASET_INVALID),
    "o.csv": (lambda data: b"text,text\na,b\n", ErrorCode.DATASET_INVALID),
    "p.csv": (lambda data: b"text\na,b\n", ErrorCode.DATASET_ROW_INVALID),
    "q.csv": (lambda data: b"text\n\xff\n", ErrorCode.DATASET_INVALID),
    "r.txt": (lambda data: b"\xff" + data, ErrorCode.DATASET_ROW_INVALID),
    "s.txt": (lambda data: b"document".decode().encode("utf-16")[:-1], ErrorCode.DATASET_INVALID),
    "t.txt": (lambda data: data.decode().encode("utf-16-le"), ErrorCode.DATASET_ROW_INVALID),
    "u.txt": (lambda data: b'{"text": "a"}\n' + data, ErrorCode.DATASET_ROW_INVALID),
    "u2.txt": (lambda data: data, ErrorCode.DATASET_ROW_INVALID),
    "v.txt": (lambda data: b" \n\r\n", ErrorCode.DATASET_INVALID),
    "w.txt": (lambda data: b"", ErrorCode.DATASET_INVALID),
    "x.txt": (lambda data: b"\xef\xbb\xbf\n", ErrorCode.DATASET_INVALID),
    "y.txt.gz": (lambda data: gzip.compress(data)[:-12], ErrorCode.DATASET_INVALID),
}
WHOLE: dict[str, Callable[[Content], bytes]] = {
    ".parquet": parquet,
    ".arrow": stream,
    ".feather": feather,
    ".gz": lambda rows: gzip.compress(lines(rows)),
}


@pytest.mark.parametrize("name", CUT)
def test_broken_files_are_named_and_never_quoted(tmp_path: Path, name: str) -> None:
    rows: Content = [{"text": CANARY * 20} for _ in range(50)]
    harm, code = CUT[name]
    whole: bytes = WHOLE.get(Path(name).suffix, as_list)(rows)
    with pytest.raises(DataError) as caught:
        read_rows_of(harm(whole), name, tmp_path)
    error = caught.value
    assert (error.code, error.file) == (code, name)
    shown = f"{error} {error.args} {error.expected} {error.found} {error.hint}"
    assert CANARY not in shown + "".join(traceback.format_exception(error))
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_value_that_arrow_cannot_hand_over_is_the_rows_own_fault(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    )
    pyarrow.parquet.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    found = list(scan_rows(tmp_path / "a.parquet", name="a.parquet"))
    assert [type(row) for row in found] == [TextRow, DataError, TextRow]
    assert isinstance(found[1], DataError)
    assert (found[1].row, found[1].__context__) == (1, None)


def test_reading_goes_on_behind_a_bad_row_and_ends_at_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n\n{"text": 1}\n{"text": "b"}\n{"text"\n')
    found = list(scan_rows(path, name="a.jsonl"))
    where = [row.row if isinstance(row, DataError) else row.index for row in found]
    assert where == [0, 1, 2, 3, 4, 5]
    assert [isinstance(row, DataError) for row in found] == [False, True, True, True, False, True]


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.jsonl.zst", pa.compress(lines(CHATS), codec="zstd", asbytes=True), "zstd"),
        ("a.jsonl.xz", lzma.compress(lines(CHATS)), "xz"),
        ("a.csv.bz2", bz2.compress(lines(CHATS)), "bzip2"),
        ("a.xlsx", b"PK\x03\x04" + b"x" * 30, "zip"),
        ("a.json", gzip.compress(lines(CHATS)), "gzip"),
        (
            "a.jsonl.gz",
            gzip.compress(pa.compress(lines(CHATS), codec="zstd", asbytes=True)),
            "zstd",
        ),
    ],
)
def test_other_compressions_are_refused_by_their_name(
    tmp_path: Path, name: str, data: bytes, found: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    (error,) = scan_rows(path, name=name)
    assert isinstance(error, DataError)
    assert (error.code, error.row, str(error.found)) == (
        ErrorCode.DATASET_INVALID,
        None,
        f"{found} data",
    )
    assert "decompress it" in str(error.hint)


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.rows.data_file.FREE_DECOMPRESSED_BYTES", 1 << 16)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * (2 << 16)))
    with pytest.raises(DataError) as caught:
        list(read_rows(path, name="a.jsonl.gz"))
    assert caught.value.code is ErrorCode.DATASET_TOO_LARGE


def test_a_long_document_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.rows.formats.text_format.MAX_ROW_BYTES", 100)
    monkeypatch.setattr("trainer.data.rows.data_file.MAX_ROW_BYTES", 100)
    assert len(read_rows_of(b"a" * 100, "a.txt", tmp_path)) == 1
    with pytest.raises(DataError, match="too long") as caught:
        read_rows_of(b"a" * 100_000, "a.txt", tmp_path)
    assert (caught.value.file, caught.value.row) == ("a.txt", 0)


def test_a_document_is_text_whatever_the_job_calls_its_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once")
    schema = RowSchema(columns={"text": "story"}, ignored=frozenset({"id"}))
    assert list(read_rows(tmp_path / "a.txt", name="a.txt", schema=schema)) == [
        TextRow("a.txt", 0, "Once")
    ]
    with pytest.raises(DataError, match="got text") as caught:
        list(read_rows(tmp_path / "a.txt", name="a.txt", schema=RowSchema(format="messages")))
    assert (caught.value.file, caught.value.row) == ("a.txt", 0)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz"]
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    noise = random.Random(3)  # rows that do not compress to nothing
    rows: Content = [{"text": f"{noise.random()} " * 200} for _ in range(4000)]
    makers: dict[str, Callable[[Content], bytes]] = {
        ".json": lambda rows: json.dumps(rows).encode(),
        ".csv": lambda rows: separated(rows, ","),
        ".jsonl": lines,
        **WHOLE,
    }
    (tmp_path / name).write_bytes(makers[Path(name).suffix](rows))
    assert sum(1 for _ in read_rows(tmp_path / name, name=name)) == 4000  # imports what it needs
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / name, name=name)) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # the rows' text is 15 MB


def test_a_long_row_in_a_list_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.rows.data_file.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("trainer.data.rows.formats.json_format._BLOCK_BYTES", 100)
    path = tmp_path / "a.json"
    path.write_text('[{"text": "' + "a" * 900 + '"}, {"text": "' + "b" * 10000 + '"}]')
    found = list(scan_rows(path, name="a.json"))
    assert isinstance(found[0], TextRow)
    assert isinstance(found[1], DataError)
    assert "too long" in str(found[1])
    assert len(found) == 2


@given(
    rows=st.lists(st.fixed_dictionaries({"text": st.text(min_size=1)}), min_size=1, max_size=5),
    block=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
)
def test_a_list_reads_the_same_whatever_the_blocks(
    rows: list[dict[str, str]],
    block: int,
    indent: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("list")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.data.rows.formats.json_format._BLOCK_BYTES", block)
        found = read_rows_of(
            json.dumps(rows, indent=indent, ensure_ascii=False).encode(errors="replace"),
            "a.json",
            folder,
        )
    assert [row.text for row in found if isinstance(row, TextRow)] == [
        row["text"].encode(errors="replace").decode() for row in rows
    ]


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="pyarrow") as caught:
        read_files({"a.parquet": tmp_path / "a.parquet"}, max_rows=1)
    assert "confidential-trainer[validate]" in (caught.value.hint or "")


def test_columns_are_renamed_and_left_out_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer,id\nq,a,1\n")
    schema = RowSchema(
        columns={"prompt": "question", "completion": "answer"}, ignored=frozenset({"id"})
    )
    assert list(read_rows(path, name="a.csv", schema=schema)) == [
        CompletionRow("a.csv", 0, "q", "a")
    ]
    with pytest.raises(DataError, match="1 other keys") as caught:
        list(read_rows(path, name="a.csv", schema=RowSchema(columns=schema.columns)))
    assert "data.ignore_columns" in (caught.value.hint or "")
    with pytest.raises(DataError, match="gives another column"):
        list(read_rows(path, name="a.csv", schema=RowSchema(columns={"question": "answer"})))


def test_a_named_format_admits_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}')
    with pytest.raises(DataError, match="expected completion and prompt"):
        list(read_rows(path, name="a.jsonl", schema=RowSchema(format="prompt_completion")))


def test_a_chat_in_a_csv_cell_is_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'messages,tools\n"[{""role"": ""user"", ""content"": ""a""}]",\n'
    )
    assert read_files({"a.csv": tmp_path / "a.csv"}, max_rows=1) == [
        ChatRow("a.csv", 0, (Message("user", "a"),))
    ]
    (tmp_path / "b.csv").write_text(f"messages\n{CANARY}\n")
    with pytest.raises(DataError, match="JSON text") as caught:
        read_files({"b.csv": tmp_path / "b.csv"}, max_rows=1)
    assert CANARY not in str(caught.value)
