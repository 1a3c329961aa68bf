"""JSON lines, and JSON documents that are a list of objects.

A document is parsed object by object, so that its size is not bounded by memory.

Source: RFC 8259 (JSON); https://jsonlines.org.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

from trainer.data.rows.data_file import DataFile
from trainer.data.rows.file_format import FileFormat, RawRow
from trainer.data.rows.row import RowLocation
from trainer.data.rows.values import row_error
from trainer.encoding import parse_json, strict_decoder
from trainer.errors import DataError, ErrorCode

_BLOCK_BYTES: Final = 1 << 20
_DECODER: Final = strict_decoder()
_LIST_KEYS: Final = ("data", "examples", "rows", "train")
"""Keys under which a document may hold the list of its rows, if there is no other key."""

_LIST_UNDER_KEY: Final = re.compile(
    r'\s*\{(?P<before>(?:\s*"[^"]*"\s*:\s*(?:"[^"]*"|[^\s"{}\[\],]+)\s*,)*)'
    r'\s*"(?P<key>data|examples|rows|train|training|validation|valid|val|dev|test|eval|evaluation)"\s*:\s*\['
)
"""An object whose first value that is no text or number is a list under a key that names the rows of a dataset."""


def _read_lines(data_file: DataFile) -> Iterator[RawRow]:
    """Yields each line. Empty lines are accepted at the end only."""
    with data_file.open() as stream:
        yield from _lines_with_rows(data_file, stream)


def _lines_with_rows(data_file: DataFile, stream: BinaryIO) -> Iterator[RawRow]:
    first_empty: int | None = None
    for index, line in enumerate(data_file.lines(stream)):
        if not line.strip():
            first_empty = index if first_empty is None else first_empty
            continue
        # A line that is not empty follows: the empty lines before it were not the end of the file.
        for gap in range(index if first_empty is None else first_empty, index):
            yield row_error(
                data_file.location(gap), "an empty line", expected="a JSON object", found="nothing"
            )
        first_empty = None
        yield line


def parse_json_line(line: bytes, location: RowLocation) -> RawRow:
    """Returns the JSON value of one line, or the error that refuses the line."""
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"something else at byte {error.start} of the line"
        return row_error(location, "not text", expected="UTF-8", found=found)
    except ValueError as error:
        hint = "a JSONL file holds one complete JSON object per line"
        return row_error(
            location, "not readable", expected="a JSON object", found=str(error), hint=hint
        )


def _read_document(data_file: DataFile) -> Iterator[RawRow]:
    """Yields the objects of a list, or of the list under the only key of an object; otherwise reads JSON lines."""
    with data_file.open() as stream:
        start = cast("io.BufferedReader", stream).peek(_BLOCK_BYTES)[:_BLOCK_BYTES].lstrip()
        text = start.decode("utf-8", "replace")
        under_key = _LIST_UNDER_KEY.match(text)
        # An object that is written over several lines, so that its first line is no row.
        first_line, line_end, _ = text.partition("\n")
        is_indented = text.startswith("{") and line_end and first_line.rstrip()[-1] in "{[,:"
        if text.startswith("["):
            yield from _parse_list(data_file, stream, under_key=False)
        elif under_key and not under_key["before"] and under_key["key"] in _LIST_KEYS:
            yield from _parse_list(data_file, stream, under_key=True)
        elif under_key or is_indented:
            raise _not_alone(data_file)
        else:
            yield from _lines_with_rows(data_file, stream)


def _not_alone(data_file: DataFile) -> DataError:
    keys = ", ".join(_LIST_KEYS)
    return DataError(
        ErrorCode.DATASET_INVALID,
        "the list of rows is not alone in the document",
        file=data_file.name,
        expected=f"a list, an object with one key ({keys}) that holds it, or an object in each line",
        found="an object with other keys, or over several lines",
        hint="write the list alone into a file, and rows for evaluation into another (data.eval_files)",
    )


def _parse_list(data_file: DataFile, stream: BinaryIO, *, under_key: bool) -> Iterator[RawRow]:
    parser = _ListParser(data_file, stream)
    if under_key:
        parser.skip_match(_LIST_UNDER_KEY)
    else:
        parser.skip_character("[")
    while parser.next_character() != "]":
        if parser.row:
            parser.skip_character(",")
        if parser.next_character() != "{":
            location = data_file.location(parser.row)
            raise row_error(location, "not an object", expected="an object", found="something else")
        yield parser.parse_object()
        parser.row += 1
    parser.skip_character("]")
    if under_key:
        if parser.next_character() == ",":
            raise _not_alone(data_file)
        parser.skip_character("}")
    if parser.next_character():
        raise data_file.unreadable("nothing after the list", row=parser.row)


class _ListParser:
    """Reads a JSON text from its start and keeps only the part in memory that is being parsed.

    Attributes:
        row: index of the row that is being parsed, for errors.
    """

    def __init__(self, data_file: DataFile, stream: BinaryIO) -> None:
        self.row = 0
        self._data_file = data_file
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._position = 0

    def next_character(self) -> str:
        """Skips white space and returns the next character without consuming it; an empty text at the end."""
        while True:
            while self._position < len(self._text):
                if self._text[self._position] not in " \t\r\n":
                    return self._text[self._position]
                self._position += 1
            if not self._read_block():
                return ""

    def skip_character(self, expected: str) -> None:
        """Consumes a character.

        Raises:
            DataError: the next character is another one.
        """
        if self.next_character() != expected:
            raise self._data_file.unreadable(f"JSON with {expected!r} here", row=self.row)
        self._position += 1

    def skip_match(self, pattern: re.Pattern[str]) -> None:
        """Consumes the text that a pattern matches here.

        Raises:
            DataError: the pattern does not match.
        """
        while not (match := pattern.match(self._text, self._position)):
            if not self._read_block():
                raise self._data_file.unreadable("JSON")
        self._position = match.end()

    def parse_object(self) -> object:
        """Consumes one object and returns it.

        Raises:
            DataError: there is no valid object here, or it is longer than a row may be.
        """
        while True:
            outcome = self._try_parse()
            if not isinstance(outcome, str):
                return outcome[0]
            # The object may end in a later block: read on until it does, or is too long, or the file ends.
            self._data_file.check_row_size(self.row, len(self._text) - self._position)
            if not self._read_block():
                raise row_error(
                    self._data_file.location(self.row),
                    "not readable",
                    expected="a JSON object",
                    found=outcome,
                )

    def _try_parse(self) -> tuple[object] | str:
        """Returns the object in a tuple, or the reason why the text so far holds none.

        Raises:
            DataError: no further text can make the object valid.
        """
        try:
            value, self._position = _DECODER.raw_decode(self._text, self._position)
        except json.JSONDecodeError as error:
            # More text may complete the object: the decoder does not tell an early end from a wrong character.
            return f"not JSON: {error.msg}"
        except (ValueError, RecursionError) as error:
            problem = str(error) if isinstance(error, ValueError) else "nested too deeply"
        else:
            return (value,)
        location = self._data_file.location(self.row)
        raise row_error(location, "not readable", expected="a JSON object", found=problem)

    def _read_block(self) -> bool:
        """Appends a block to the unparsed text; returns False at the end of the file."""
        # At least as much as is unparsed: the text doubles, so that a long row is parsed few times in vain.
        block = self._stream.read(max(_BLOCK_BYTES, len(self._text) - self._position))
        try:
            decoded = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError:
            decoded = None
        if decoded is None:  # raised outside the handler: the decoder's error has the bytes
            raise self._data_file.not_utf8("in this row or a later one", row=self.row)
        self._text, self._position = self._text[self._position :] + decoded, 0
        return bool(block)


JSON_LINES: Final = FileFormat((".jsonl", ".ndjson"), _read_lines)
JSON_DOCUMENT: Final = FileFormat((".json",), _read_document)
