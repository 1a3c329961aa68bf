"""Parquet, and Arrow IPC as a file (Feather 2) or as a stream (Hugging Face datasets), a batch at a time.

pyarrow is imported when such a file is opened. Its errors quote values, so none of them is passed on. What a
column means that `datasets` has described is in `table_columns`.

Source: the Apache Parquet and Apache Arrow (IPC) format specifications, through pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from trainer.data.rows.data_file import DataFile
from trainer.data.rows.file_format import FileFormat, RawRow
from trainer.data.rows.formats.table_columns import Convert, column_converters, import_package
from trainer.data.rows.values import UNREADABLE, remove_nulls
from trainer.errors import DataError, ErrorCode

BATCH_ROWS: Final = 512

_ARROW_FILE_MAGIC: Final = b"ARROW1"


def _read_parquet(data_file: DataFile) -> Iterator[RawRow]:
    pyarrow = import_package("pyarrow", data_file, modules=("parquet",))

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(data_file.path, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)

    yield from _read_batches(batches, data_file, pyarrow)


def _read_arrow_ipc(data_file: DataFile) -> Iterator[RawRow]:
    pyarrow = import_package("pyarrow", data_file, modules=("ipc",))

    def batches() -> Iterator[Any]:
        # The file format frames the stream format with this magic and a footer, which lists the batches.
        with data_file.path.open("rb") as file:
            is_file_format = file.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        with pyarrow.memory_map(str(data_file.path)) as source:
            if is_file_format:
                reader = pyarrow.ipc.open_file(source)
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                yield from pyarrow.ipc.open_stream(source)

    yield from _read_batches(batches, data_file, pyarrow)


def _read_batches(
    batches: Callable[[], Iterator[Any]], data_file: DataFile, pyarrow: Any
) -> Iterator[RawRow]:
    converters: Mapping[str, Convert] | None = None
    for batch in _hide_errors(batches, data_file, pyarrow):
        if converters is None:
            _require_unique_columns(batch.schema, data_file)
            converters = column_converters(batch.schema, data_file)
        # A file may be one large batch: convert slices of it, so that few rows exist as Python objects at a time.
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield from _convert_slice(batch.slice(start, BATCH_ROWS), converters, pyarrow)
    data_file.on_bytes_read(data_file.path.stat().st_size)


def _hide_errors(
    batches: Callable[[], Iterator[Any]], data_file: DataFile, pyarrow: Any
) -> Iterator[Any]:
    """Yields the batches; replaces an error of pyarrow by one that names the file and the row only."""
    remaining, rows_read = batches(), 0
    while True:
        try:
            batch = next(remaining, None)
        except (pyarrow.ArrowException, OSError, ValueError, EOFError):
            break
        if batch is None:
            return
        rows_read += batch.num_rows
        yield batch
    raise data_file.unreadable("a complete Parquet, Arrow or Feather file", row=rows_read)


def _require_unique_columns(schema: Any, data_file: DataFile) -> None:
    """Requires that no two columns have the same name: only one of them would be in the rows."""
    if len(set(schema.names)) != len(schema.names):
        raise DataError(
            ErrorCode.DATASET_INVALID,
            "two columns have the same name",
            file=data_file.name,
            expected="a name for each column",
            found=f"{len(set(schema.names))} names for {len(schema.names)} columns",
        )


def _convert_slice(batch: Any, converters: Mapping[str, Convert], pyarrow: Any) -> Iterator[RawRow]:
    try:
        rows = batch.to_pylist()
        for name, convert in converters.items():
            for row in rows:
                row[name] = convert(row[name])
    except (pyarrow.ArrowException, ValueError, OverflowError, KeyError):
        # A value has no Python form. Convert value by value, so that only a row that uses it is refused.
        for offset in range(batch.num_rows):
            yield _convert_row(batch.slice(offset, 1), converters, pyarrow)
    else:
        yield from map(remove_nulls, rows)


def _convert_row(batch: Any, converters: Mapping[str, Convert], pyarrow: Any) -> RawRow:
    row: dict[str, object] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = column[0].as_py()
            row[name] = converters[name](value) if name in converters else value
        except (pyarrow.ArrowException, ValueError, OverflowError, KeyError):
            row[name] = UNREADABLE
    return remove_nulls(row)


PARQUET: Final = FileFormat((".parquet",), _read_parquet, compressible=False)
ARROW_IPC: Final = FileFormat((".arrow", ".feather", ".ipc"), _read_arrow_ipc, compressible=False)
