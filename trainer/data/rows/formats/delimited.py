"""CSV and TSV. The first line names the columns and has no row index.

The suffix names the separator. Where the first line has no such separator and exactly one other, the file is read
with that one: spreadsheets of many countries write semicolons into `.csv`.

Source: RFC 4180 (quoting).
"""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from trainer.data.rows.data_file import MAX_ROW_BYTES, DataFile
from trainer.data.rows.file_format import FileFormat, RawRow
from trainer.data.rows.values import row_error
from trainer.errors import DataError, ErrorCode

_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _read_cells(data_file: DataFile, *, separator: str) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with data_file.open() as stream:
        lines = _decode_lines(data_file, stream)
        first = next((line for line in lines if line.strip("\r\n")), "")
        separator = _choose_separator(first, separator, data_file)
        reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
        columns: list[str] | None = None
        index = 0
        while True:
            try:
                cells = next(reader, None)
            except csv.Error:
                break
            if cells is None:
                return
            if not cells:
                continue  # an empty line
            if columns is None:
                _require_unique(cells, data_file)
                columns = cells
                continue
            yield _name_cells(columns, cells, data_file, index)
            index += 1
        # After a quoting error it is open where the next cell begins, so the rest of the file is lost. Raised
        # outside the handler, because the library's error may quote the text and would become the context.
        raise data_file.unreadable(
            "cells quoted as RFC 4180 says, not longer than a row may be", row=index
        )


def _decode_lines(data_file: DataFile, stream: BinaryIO) -> Iterator[str]:
    for index, line in enumerate(data_file.lines(stream)):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = data_file.not_utf8(f"at byte {error.start} of line {index + 1}")
            break
        # UTF-16 without a byte order mark is valid UTF-8, with a zero beside each ASCII letter.
        if "\0" in text:
            problem = data_file.not_utf8(f"with a zero character in line {index + 1}")
            break
        yield text
    else:
        return
    raise problem  # outside the handler: the decoder's error has the bytes


def _choose_separator(first_line: str, own: str, data_file: DataFile) -> str:
    """Returns the separator of the suffix, or the only one that the first line has instead."""
    found = [separator for separator in _SEPARATORS if _count_cells(first_line, separator) > 1]
    if own in found or not found:
        return own
    if len(found) == 1:
        return found[0]
    raise DataError(
        ErrorCode.DATASET_INVALID,
        "the separator is not clear",
        file=data_file.name,
        expected=f"a first line with {_SEPARATORS[own]}, or with one other separator",
        found=" and ".join(_SEPARATORS[separator] for separator in found),
    )


def _count_cells(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator)))
    except (csv.Error, StopIteration):
        return 0


def _require_unique(columns: Sequence[str], data_file: DataFile) -> None:
    """Requires that no two columns have the same name. Several may have none: see `_name_cells`."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(columns, start=1):
        if name and name in numbers:
            raise DataError(
                ErrorCode.DATASET_INVALID,
                "two columns have the same name",
                file=data_file.name,
                expected="a first line that names each column once",
                found=f"the same name for columns {numbers[name]} and {number}",
            )
        numbers[name] = number


def _name_cells(
    columns: Sequence[str], cells: Sequence[str], data_file: DataFile, index: int
) -> RawRow:
    if len(cells) != len(columns):
        return row_error(
            data_file.location(index),
            "the wrong number of cells",
            expected=f"{len(columns)}, as the first line has",
            found=str(len(cells)),
        )
    named = dict(zip(columns, cells, strict=True))
    if "" in named:
        # Separators at the ends of lines make columns without name and content; those with content are one column
        # without a name, which `data.ignore_columns` may list and no kind of row has.
        unnamed = [cell for name, cell in zip(columns, cells, strict=True) if not name and cell]
        del named[""]
        return named | ({"": unnamed[0]} if unnamed else {})
    return named


COMMA_SEPARATED: Final = FileFormat((".csv",), functools.partial(_read_cells, separator=","))
TAB_SEPARATED: Final = FileFormat((".tsv",), functools.partial(_read_cells, separator="\t"))
