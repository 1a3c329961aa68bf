"""JSON as others write it: byte order marks, UTF-16, the list of rows under a key, an indented object."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pytest

from trainer.data.rows import TextRow, read_rows, scan_rows
from trainer.errors import DataError, ErrorCode

CANARY = "canary-93c2fa"
ROWS = [{"text": "Första"}, {"text": "andra 🙂"}]


def rows_of(folder: Path, name: str, content: bytes) -> list[object]:
    (folder / name).write_bytes(content)
    return list(read_rows(folder / name, name=name))


def lines(encoding: str = "utf-8") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(encoding)


def document(value: object, encoding: str = "utf-8", indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode(encoding)


BY_ENCODING = {
    "a.jsonl": codecs.BOM_UTF8 + lines(),
    "b.jsonl": lines("utf-16"),
    "c.jsonl": codecs.BOM_UTF16_BE + lines("utf-16-be"),
    "d.json": codecs.BOM_UTF8 + document(ROWS),
    "e.json": document(ROWS, "utf-16"),
    "f.json": codecs.BOM_UTF8 + lines(),
    "g.jsonl.gz": gzip.compress(codecs.BOM_UTF8 + lines()),
    "h.json.gz": gzip.compress(document(ROWS, "utf-16")),
}


@pytest.mark.parametrize("name", BY_ENCODING)
def test_a_byte_order_mark_names_the_encoding(tmp_path: Path, name: str) -> None:
    assert rows_of(tmp_path, name, BY_ENCODING[name]) == [
        TextRow(name, index, row["text"]) for index, row in enumerate(ROWS)
    ]


@pytest.mark.parametrize("name", ["only-a-mark.jsonl", "only-a-mark.json"])
def test_a_byte_order_mark_alone_is_no_row(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no rows"):
        rows_of(tmp_path, name, codecs.BOM_UTF8)


@pytest.mark.parametrize("key", ["data", "examples", "rows", "train"])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_list_may_lie_under_the_only_key(tmp_path: Path, key: str, indent: int | None) -> None:
    assert len(rows_of(tmp_path, "a.json", document({key: ROWS}, indent=indent))) == 2


OTHER_DOCUMENTS = {
    "beside a version": document({"version": "1", "data": [{"text": CANARY}]}),
    "two lists": document({"train": [{"text": CANARY}], "test": ROWS}),
    "for evaluation only": document({"test": [{"text": CANARY}]}),
    "under an unknown key": document({CANARY: [{"text": CANARY}]}, indent=2),
    "one row over several lines": document({"text": CANARY}, indent=2),
}


@pytest.mark.parametrize("title", OTHER_DOCUMENTS)
def test_other_documents_are_refused_once_and_for_their_form(tmp_path: Path, title: str) -> None:
    (tmp_path / "a.json").write_bytes(OTHER_DOCUMENTS[title])
    *rows, error = scan_rows(tmp_path / "a.json", name="a.json")
    assert isinstance(error, DataError)
    assert (error.code, error.file, error.row) == (ErrorCode.DATASET_INVALID, "a.json", None)
    assert error.reason == "the list of rows is not alone in the document"
    assert CANARY not in f"{error} {error.found} {error.hint}"
    assert len(rows) == (title == "two lists")


def test_rows_that_hold_lists_are_rows(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for content in (
        document(chat),
        document(chat) + b"\n" + document(chat) + b"\n",
        document([chat]),
    ):
        assert rows_of(tmp_path, "a.json", content)


def test_a_list_that_is_not_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path, "a.json", b'[{"text": "' + CANARY.encode() + b'"}, {"text": "Caf\xe9"}]')
    error = caught.value
    assert (error.reason, error.found) == (
        "the file is not UTF-8",
        "something else in this row or a later one",
    )
    assert (error.__cause__, error.__context__) == (None, None)
