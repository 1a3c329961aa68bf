"""Text files: each file is one document and becomes one row of kind `text`.

The row is the text of the file without the line ends at its end. A text file may lie
beside data without being data (a licence, notes), so a folder must not hold one: it is read if it is named itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trainer.data.rows.data_file import MAX_ROW_BYTES, DataFile
from trainer.data.rows.file_format import FileFormat, RawRow
from trainer.data.rows.formats.json_format import parse_json_line
from trainer.data.rows.values import row_error
from trainer.errors import DataError


def _read_text(data_file: DataFile) -> Iterator[RawRow]:
    with data_file.open() as stream:
        data = stream.read(MAX_ROW_BYTES + 1)
    data_file.check_row_size(0, len(data))
    if data.strip():  # otherwise the file has no row, which the caller refuses
        yield _parse_text(data, data_file)


def _parse_text(data: bytes, data_file: DataFile) -> dict[str, str] | DataError:
    location = data_file.location(0)
    # Rows in JSON would be learned as text, with their braces: most likely the suffix is wrong.
    if _starts_with_json_rows(data, data_file):
        hint = "rename the file to .jsonl or .json if its rows are JSON objects"
        return row_error(
            location, "not plain text", expected="a document", found="JSON objects", hint=hint
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return row_error(
            location, "not text", expected="UTF-8", found=f"something else at byte {error.start}"
        )
    # UTF-16 without a byte order mark is valid UTF-8, with a zero after each ASCII letter.
    if "\0" in text:
        return row_error(
            location, "not text", expected="UTF-8 without zero characters", found="a zero character"
        )
    return {"text": text.rstrip("\r\n")}


def _starts_with_json_rows(data: bytes, data_file: DataFile) -> bool:
    first_line = data.lstrip().partition(b"\n")[0]
    if first_line[:1] not in (b"{", b"["):
        return False
    value = parse_json_line(first_line, data_file.location(0))
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) for item in items)


TEXT_DOCUMENT: Final = FileFormat((".txt",), _read_text, in_folders=False)
