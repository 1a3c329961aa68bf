"""CSV and TSV. The first line names the columns and has no row index.

Source: RFC 4180 (quoting), in UTF-8 with or without a byte order mark.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from typing import BinaryIO, Final

from trainer.data.rows.data_file import MAX_ROW_BYTES, DataFile
from trainer.data.rows.file_format import FileFormat, RawRow
from trainer.data.rows.values import row_error


def _read_cells(data_file: DataFile, *, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with data_file.open() as stream:
        reader = csv.reader(_decode_lines(data_file, stream), delimiter=delimiter, strict=True)
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
                if len(set(cells)) != len(cells):
                    raise data_file.unreadable("a first line that names each column once")
                columns = cells
                continue
            yield _name_cells(columns, cells, data_file, index)
            index += 1
        # After a quoting error it is open where the next cell begins, so the rest of the file is lost. Raised
        # outside the handler, because the library's error may quote the text and would become the context.
        raise data_file.unreadable("cells quoted as RFC 4180 says, not longer than a row may be", row=index)


def _decode_lines(data_file: DataFile, stream: BinaryIO) -> Iterator[str]:
    for index, line in enumerate(data_file.lines(stream)):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            break
        yield text.removeprefix("\ufeff") if index == 0 else text  # spreadsheets write a byte order mark
    else:
        return
    raise data_file.unreadable(f"UTF-8 in line {index + 1}")


def _name_cells(columns: list[str], cells: list[str], data_file: DataFile, index: int) -> RawRow:
    if len(cells) != len(columns):
        return row_error(
            data_file.location(index),
            "the wrong number of cells",
            expected=f"{len(columns)}, as the first line has",
            found=str(len(cells)),
        )
    return dict(zip(columns, cells, strict=True))


COMMA_SEPARATED: Final = FileFormat((".csv",), functools.partial(_read_cells, delimiter=","))
TAB_SEPARATED: Final = FileFormat((".tsv",), functools.partial(_read_cells, delimiter="\t"))
