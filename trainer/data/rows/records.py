"""Text files → objects, one at a time: JSON lines, a JSON list, CSV and TSV; plain or gzipped.

Each reader yields an object per row, or a `DataError` for a row that cannot be read while the next ones can; it
raises one where the rest of the file is lost. Memory is bounded by the longest row, not by the file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

from trainer.data.rows.row import Row
from trainer.data.rows.sources import broken
from trainer.data.rows.values import refused
from trainer.encoding import parse_json, strict_decoder
from trainer.errors import DataError

MAX_ROW_BYTES: Final = 64 << 20
"""Longest acceptable row. A row is far smaller; a file that is not what it should be may be one endless line."""

Record = object | DataError
"""What a row's text says, or why it says nothing."""

_BLOCK: Final = 1 << 20
_DECODER: Final = strict_decoder()
_WRAPPED: Final = re.compile(r'\s*\{\s*"data"\s*:\s*\[')


def json_lines(file: BinaryIO, name: str) -> Iterator[Record]:
    """One object per line. Empty lines at the end are accepted."""
    empty: int | None = None
    for index, line in enumerate(_lines(file, name)):
        if not line.strip():
            empty = index if empty is None else empty
            continue
        for gap in range(index if empty is None else empty, index):
            yield refused(Row(name, gap), "an empty line", expected="a JSON object", found="nothing")
        empty = None
        yield json_line(line, Row(name, index))


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    index = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise _too_long(Row(name, index))
        yield line
        index += 1


def _too_long(place: Row) -> DataError:
    return refused(place, "the row is too long", expected=f"at most {MAX_ROW_BYTES} bytes", found="more")


def json_line(line: bytes, place: Row) -> Record:
    """What one line says, or why it says nothing."""
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"something else at byte {error.start} of the line"
        return refused(place, "not text", expected="UTF-8", found=found)
    except ValueError as error:
        hint = "a JSONL file holds one whole JSON object per line"
        return refused(place, "not readable", expected="a JSON object", found=str(error), hint=hint)


def json_file(file: BinaryIO, name: str) -> Iterator[Record]:
    """A list of objects, or an object whose only key `data` is such a list; or JSON lines by another name."""
    start = cast("io.BufferedReader", file).peek(_BLOCK)[:_BLOCK].lstrip()
    if start.startswith(b"["):
        return _elements(file, name, wrapped=False)
    if _WRAPPED.match(start.decode("utf-8", "replace")):
        return _elements(file, name, wrapped=True)
    return json_lines(file, name)


class _Buffer:
    """Text of a file from a position on, read as far as needed."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.index = 0
        self._file = file
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0

    def more(self) -> bool:
        """Read a block; False at the end of the file."""
        block = self._file.read(max(_BLOCK, len(self._text) - self._at))  # doubles: a long row is not parsed often
        self._text, self._at = self._text[self._at :] + self._decode(block), 0
        return bool(block)

    def _decode(self, block: bytes) -> str:
        try:
            return self._decoder.decode(block, final=not block)
        except UnicodeDecodeError:
            pass
        raise broken(self._name, "UTF-8", row=self.index)

    def next(self) -> str:
        """The next character that is not white space, or an empty text at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self.more():
                return ""

    def take(self, expected: str) -> None:
        """Step over a character.

        Raises:
            DataError: another one stands there.
        """
        if self.next() != expected:
            raise broken(self._name, f"JSON with {expected!r} here", row=self.index)
        self._at += 1

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Step over what the pattern matches, which must stand here."""
        while not (match := pattern.match(self._text, self._at)):
            if not self.more():
                raise broken(self._name, "JSON")
        self._at = match.end()

    def value(self) -> object:
        """Step over one object and return it.

        Raises:
            DataError: none stands here, or it is longer than a row may be.
        """
        while True:
            problem = self._parsed()
            if not isinstance(problem, str):
                return problem[0]
            if len(self._text) - self._at > MAX_ROW_BYTES:
                raise _too_long(Row(self._name, self.index))
            if not self.more():
                raise refused(Row(self._name, self.index), "not readable", expected="a JSON object", found=problem)

    def _parsed(self) -> tuple[object] | str:
        """The object that stands here, or why none does (yet)."""
        try:
            value, self._at = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            return f"not JSON: {error.msg}"
        except (ValueError, RecursionError) as error:
            problem = str(error) if isinstance(error, ValueError) else "nested too deeply"
        else:
            return (value,)
        raise refused(Row(self._name, self.index), "not readable", expected="a JSON object", found=problem)


def _elements(file: BinaryIO, name: str, *, wrapped: bool) -> Iterator[Record]:
    buffer = _Buffer(file, name)
    if wrapped:
        buffer.skip(_WRAPPED)
    else:
        buffer.take("[")
    while buffer.next() != "]":
        if buffer.index:
            buffer.take(",")
        place = Row(name, buffer.index)
        if buffer.next() != "{":
            raise refused(place, "not an object", expected="an object", found="something else")
        yield buffer.value()
        buffer.index += 1
    buffer.take("]")
    if wrapped:
        buffer.take("}")
    if buffer.next():
        raise broken(name, "nothing behind the list", row=buffer.index)


def separated(file: BinaryIO, name: str, delimiter: str) -> Iterator[Record]:
    """CSV or TSV whose first line names the columns; quoted as RFC 4180 says. That line has no row index."""
    csv.field_size_limit(MAX_ROW_BYTES)
    rows = csv.reader(_text_lines(file, name), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    index = -1
    while (cells := _next_cells(rows, name, index + 1)) is not None:
        if not cells:
            continue  # an empty line
        if names is None:
            names = _column_names(cells, name)
            continue
        index += 1
        yield _named_cells(names, cells, Row(name, index))


def _text_lines(file: BinaryIO, name: str) -> Iterator[str]:
    start = True
    for index, line in enumerate(_lines(file, name)):
        decoded = _decoded(line, name, index)
        yield decoded.removeprefix("\ufeff") if start else decoded
        start = False


def _decoded(line: bytes, name: str, index: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise broken(name, f"UTF-8 in line {index + 1}")


def _next_cells(rows: Iterator[list[str]], name: str, index: int) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error:
        pass
    raise broken(name, "cells quoted as RFC 4180 says, not longer than a row may be", row=max(index, 0))


def _column_names(cells: list[str], name: str) -> list[str]:
    if len(set(cells)) != len(cells):
        raise broken(name, "a first line that names each column once")
    return cells


def _named_cells(names: list[str], cells: list[str], place: Row) -> Record:
    if len(cells) != len(names):
        return refused(
            place,
            "the wrong number of cells",
            expected=f"{len(names)}, as the first line has",
            found=str(len(cells)),
        )
    return dict(zip(names, cells, strict=True))
