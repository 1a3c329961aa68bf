"""Reads files into rows, in the order of the files' names. The suffix of a name selects the format of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trainer.data.rows.data_file import BytesReadCallback, DataFile
from trainer.data.rows.file_format import RawRow
from trainer.data.rows.formats import find_format
from trainer.data.rows.formats.json_format import parse_json_line
from trainer.data.rows.row import Row, RowLocation
from trainer.data.rows.row_files import RowFile, list_row_files
from trainer.data.rows.row_schema import RowSchema
from trainer.errors import DataError, ErrorCode

DEFAULT_SCHEMA: Final = RowSchema()
"""Columns keep their names, and the keys of each object select its kind."""


def read_files(
    files: Mapping[str, Path], *, max_rows: int, schema: RowSchema = DEFAULT_SCHEMA
) -> list[Row]:
    """Reads all rows of all files that hold rows.

    Args:
        files: name of each file relative to `data/` → its path.
        max_rows: most rows that are accepted.
        schema: how objects become rows.

    Raises:
        DataError: a row is not acceptable, there are more than `max_rows`, or side files contradict the others.
    """
    rows: list[Row] = []
    for row in scan_files(
        list_row_files(files, eval_files=schema.eval_files), max_rows=max_rows, schema=schema
    ):
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
        for row in parse_raw_rows(file, read_raw_rows(file, on_bytes_read), schema):
            if isinstance(row, DataError):
                yield row
                continue
            if count == max_rows:
                yield too_many_rows(row, max_rows)
                return
            count += 1
            yield row


def too_many_rows(row: RowLocation, max_rows: int) -> DataError:
    """Returns the error for the first row beyond `data.max_rows`."""
    expected = f"at most {max_rows} (data.max_rows)"
    return row.refuse(ErrorCode.DATASET_TOO_LARGE, "too many rows", expected=expected, found="more")


def read_rows(
    path: Path, *, name: str, schema: RowSchema = DEFAULT_SCHEMA, for_evaluation: bool = False
) -> Iterator[Row]:
    """Reads a file row by row.

    Args:
        path: the file.
        name: its name relative to `data/`, which errors show. Its suffix selects the format.
        schema: how objects become rows.
        for_evaluation: whether the split of the file is one for evaluation.

    Raises:
        DataError: the first row that is not acceptable, or the file holds no row.
    """
    file = RowFile(name, path, for_evaluation)
    for row in parse_raw_rows(file, read_raw_rows(file), schema):
        if isinstance(row, DataError):
            raise row
        yield row


def scan_rows(
    path: Path, *, name: str, schema: RowSchema = DEFAULT_SCHEMA
) -> Iterator[Row | DataError]:
    """Reads a file as `read_rows` does, and yields errors in place of rows that are not acceptable."""
    file = RowFile(name, path)
    return parse_raw_rows(file, read_raw_rows(file), schema)


def read_raw_rows(
    file: RowFile, on_bytes_read: BytesReadCallback = lambda _count: None
) -> Iterator[RawRow]:
    """Yields what a file holds for each row, unparsed.

    Args:
        file: the file.
        on_bytes_read: called with the number of further bytes that were read.

    Yields:
        Raw rows, or the errors that refuse them. An error that ends the file is the last item.
    """
    empty = True
    try:
        for raw_row in find_format(file.name).read_raw_rows(
            DataFile(file.path, file.name, on_bytes_read)
        ):
            empty = False
            yield raw_row
    except DataError as error:
        yield error
        return
    if empty:
        yield DataError(
            ErrorCode.DATASET_INVALID,
            "no rows",
            file=file.name,
            expected="at least one row",
            found=0,
        )


def parse_raw_rows(
    file: RowFile, raw_rows: Iterable[RawRow], schema: RowSchema, *, first: int = 0
) -> Iterator[Row | DataError]:
    """Parses what `read_raw_rows` yields.

    Args:
        file: the file that the rows are from.
        raw_rows: all of its raw rows, or some that follow each other.
        schema: how objects become rows.
        first: index in the file of the first of them.

    Yields:
        The row of each, or the error that refuses it.
    """
    for index, raw_row in enumerate(raw_rows, first):
        if isinstance(raw_row, DataError):
            yield raw_row
            continue
        try:
            row = _parse_raw_row(RowLocation(file.name, index), raw_row, schema)
        except DataError as error:
            yield error
        else:
            yield replace(row, for_evaluation=True) if file.for_evaluation else row


def _parse_raw_row(location: RowLocation, raw_row: RawRow, schema: RowSchema) -> Row:
    document = parse_json_line(raw_row, location) if isinstance(raw_row, bytes) else raw_row
    if isinstance(document, DataError):
        raise document
    return schema.parse_row(location, document)


def parse_row(line: bytes, *, file: str, index: int, schema: RowSchema = DEFAULT_SCHEMA) -> Row:
    """Parses one line of JSON.

    Raises:
        DataError: `DATASET_ROW_INVALID`, naming the field and the value expected there.
    """
    return _parse_raw_row(RowLocation(file, index), line, schema)
