"""Files → rows, in the order of the files' names. What a file is, the ending of its name says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from trainer.data.rows.kinds import RowSchema
from trainer.data.rows.records import Record, json_file, json_line, json_lines, separated
from trainer.data.rows.row import Row
from trainer.data.rows.sources import Advance, open_bytes
from trainer.data.rows.tables import arrow_ipc, parquet
from trainer.errors import DataError, ErrorCode

DEFAULT_SCHEMA: Final = RowSchema()
"""Rows under their own names, told by their keys."""

TEXT_ENDINGS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLE_ENDINGS: Final = (".parquet", ".arrow", ".feather", ".ipc")
ENDINGS: Final = (*TEXT_ENDINGS, *(f"{ending}.gz" for ending in TEXT_ENDINGS), *TABLE_ENDINGS)
"""Endings of data files; any other file that is named by itself is read as JSON lines."""


def read_files(files: Mapping[str, Path], *, max_rows: int, shape: RowSchema = DEFAULT_SCHEMA) -> list[Row]:
    """Read all rows of all files, in the order of the files' names.

    Raises:
        DataError: a row is not acceptable, or there are more than `max_rows`.
    """
    rows: list[Row] = []
    for name in sorted(files):
        for row in read_rows(files[name], name=name, shape=shape):
            if len(rows) == max_rows:
                raise too_many_rows(row, max_rows)
            rows.append(row)
    return rows


def too_many_rows(row: Row, most: int) -> DataError:
    """The error for a row beyond `data.max_rows`."""
    expected = f"at most {most} (data.max_rows)"
    return row.refuse(ErrorCode.DATASET_TOO_LARGE, "too many rows", expected=expected, found="more")


def read_rows(path: Path, *, name: str, shape: RowSchema = DEFAULT_SCHEMA) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        path: the file.
        name: how errors call it: its name relative to `data/`. Its ending says how the file is read.
        shape: how objects become rows.

    Yields:
        A row of its kind for each object.

    Raises:
        DataError: the first row that is not acceptable, or the file holds none.
    """
    for row in scan_rows(path, name=name, shape=shape):
        if isinstance(row, DataError):
            raise row
        yield row


def _not_told(_bytes: int) -> None:
    return


def scan_rows(
    path: Path, *, name: str, shape: RowSchema = DEFAULT_SCHEMA, advance: Advance = _not_told
) -> Iterator[Row | DataError]:
    """Read a file row by row, over the rows that are not acceptable and on: for these, the error is yielded.

    Args:
        path: the file.
        name: its name relative to `data/`.
        shape: how objects become rows.
        advance: told how many further bytes were read.
    """
    found = False
    try:
        for row in _scan(path, name, shape, advance):
            found = True
            yield row
    except DataError as error:
        yield error
        return
    if not found:
        yield DataError(ErrorCode.DATASET_INVALID, "no rows", file=name, expected="at least one row", found=0)


def _scan(path: Path, name: str, shape: RowSchema, advance: Advance) -> Iterator[Row | DataError]:
    ending = Path(name.lower().removesuffix(".gz")).suffix
    if ending in TABLE_ENDINGS:
        records = parquet(path, name) if ending == ".parquet" else arrow_ipc(path, name)
        yield from _numbered(records, name, shape)
        advance(path.stat().st_size)
        return
    with open_bytes(path, name, advance) as file:
        if ending in (".csv", ".tsv"):
            delimiter = "," if ending == ".csv" else "\t"
            yield from _numbered(separated(file, name, delimiter), name, shape, cells=True)
        else:
            records = json_file(file, name) if ending == ".json" else json_lines(file, name)
            yield from _numbered(records, name, shape)


def _numbered(
    records: Iterator[Record], name: str, shape: RowSchema, *, cells: bool = False
) -> Iterator[Row | DataError]:
    for index, record in enumerate(records):
        yield record if isinstance(record, DataError) else _row(record, Row(name, index), shape, cells=cells)


def _row(record: object, place: Row, shape: RowSchema, *, cells: bool = False) -> Row | DataError:
    try:
        return shape.row(place, record, cells=cells)
    except DataError as error:
        return error


def parse_row(line: bytes, *, file: str, index: int, shape: RowSchema = DEFAULT_SCHEMA) -> Row:
    """Parse one line of JSON.

    Raises:
        DataError: `DATASET_ROW_INVALID`, naming the field and what it must be.
    """
    place = Row(file, index)
    record = json_line(line, place)
    if isinstance(record, DataError):
        raise record
    return shape.row(place, record)
