"""Reads files into rows, in the order of the files' names. The suffix of a name selects the format of the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trainer.data.rows.data_file import BytesReadCallback, DataFile
from trainer.data.rows.formats import find_format
from trainer.data.rows.formats.json_format import parse_json_line
from trainer.data.rows.row import Row, RowLocation
from trainer.data.rows.row_files import RowFile, list_row_files
from trainer.data.rows.row_schema import RowSchema
from trainer.errors import DataError, ErrorCode

DEFAULT_SCHEMA: Final = RowSchema()
"""Columns keep their names, and the keys of each object select its kind."""


def read_files(files: Mapping[str, Path], *, max_rows: int, schema: RowSchema = DEFAULT_SCHEMA) -> list[Row]:
    """Reads all rows of all files that hold rows.

    Args:
        files: name of each file relative to `data/` → its path.
        max_rows: most rows that are accepted.
        schema: how objects become rows.

    Raises:
        DataError: a row is not acceptable, there are more than `max_rows`, or side files contradict the others.
    """
    rows: list[Row] = []
    for row in scan_files(list_row_files(files, eval_files=schema.eval_files), max_rows=max_rows, schema=schema):
        if isinstance(row, DataError):
            raise row
        rows.append(row)
    return rows


def scan_files(
    files: Sequence[RowFile],
    *,
    max_rows: int,
    schema: RowSchema = DEFAULT_SCHEMA,
    on_bytes_read: BytesReadCallback = lambda _count: None,
) -> Iterator[Row | DataError]:
    """Reads the rows of files one by one and continues after rows that are not acceptable.

    Args:
        files: the files, in the order of their rows.
        max_rows: most rows that are accepted.
        schema: how objects become rows.
        on_bytes_read: called with the number of further bytes that were read.

    Yields:
        Each row, or the error that refuses it. That of the first row beyond `max_rows` is the last item.
    """
    count = 0
    for file in files:
        for row in scan_rows(
            file.path,
            name=file.name,
            schema=schema,
            for_evaluation=file.for_evaluation,
            on_bytes_read=on_bytes_read,
        ):
            if isinstance(row, DataError):
                yield row
                continue
            if count == max_rows:
                yield _too_many_rows(row, max_rows)
                return
            count += 1
            yield row


def _too_many_rows(row: Row, max_rows: int) -> DataError:
    """Returns the error for the first row beyond `data.max_rows`."""
    expected = f"at most {max_rows} (data.max_rows)"
    return row.refuse(ErrorCode.DATASET_TOO_LARGE, "too many rows", expected=expected, found="more")


def read_rows(
    path: Path, *, name: str, schema: RowSchema = DEFAULT_SCHEMA, for_evaluation: bool = False
) -> Iterator[Row]:
    """Reads a file row by row; the arguments are those of `scan_rows`.

    Raises:
        DataError: the first row that is not acceptable, or the file holds no row.
    """
    for row in scan_rows(path, name=name, schema=schema, for_evaluation=for_evaluation):
        if isinstance(row, DataError):
            raise row
        yield row


def scan_rows(
    path: Path,
    *,
    name: str,
    schema: RowSchema = DEFAULT_SCHEMA,
    for_evaluation: bool = False,
    on_bytes_read: BytesReadCallback = lambda _count: None,
) -> Iterator[Row | DataError]:
    """Reads a file row by row and continues after rows that are not acceptable.

    Args:
        path: the file.
        name: its name relative to `data/`, which errors show. Its suffix selects the format.
        schema: how objects become rows.
        for_evaluation: whether the split of the file is one for evaluation.
        on_bytes_read: called with the number of further bytes that were read.

    Yields:
        The row of each object, or the error that refuses it. An error that ends the file is the last item.
    """
    data_file = DataFile(path, name, on_bytes_read)
    file_format = find_format(name)
    index = -1
    try:
        for index, raw_row in enumerate(file_format.read_raw_rows(data_file)):
            if isinstance(raw_row, DataError):
                yield raw_row
                continue
            try:
                row = schema.parse_row(data_file.location(index), raw_row)
            except DataError as error:
                yield error
            else:
                yield replace(row, for_evaluation=True) if for_evaluation else row
    except DataError as error:
        yield error
        return
    if index < 0:
        yield DataError(ErrorCode.DATASET_INVALID, "no rows", file=name, expected="at least one row", found=0)


def parse_row(line: bytes, *, file: str, index: int, schema: RowSchema = DEFAULT_SCHEMA) -> Row:
    """Parses one line of JSON.

    Raises:
        DataError: `DATASET_ROW_INVALID`, naming the field and the value expected there.
    """
    location = RowLocation(file, index)
    raw_row = parse_json_line(line, location)
    if isinstance(raw_row, DataError):
        raise raw_row
    return schema.parse_row(location, raw_row)
