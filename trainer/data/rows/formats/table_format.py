"""Parquet, and Arrow IPC as a file (Feather 2) or as a stream (Hugging Face datasets), a batch at a time.

pyarrow is imported when such a file is opened. Its errors quote values, so none of them is passed on.

Source: the Apache Parquet and Apache Arrow (IPC) format specifications, through pyarrow.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

from trainer.data.rows.data_file import DataFile
from trainer.data.rows.file_format import FileFormat, RawRow
from trainer.data.rows.values import remove_nulls, row_error
from trainer.errors import ErrorCode, UsageError

BATCH_ROWS: Final = 512

_ARROW_FILE_MAGIC: Final = b"ARROW1"


def _read_parquet(data_file: DataFile) -> Iterator[RawRow]:
    pyarrow = _import_pyarrow(data_file, "parquet")

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(data_file.path, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)

    yield from _read_batches(batches, data_file, pyarrow)


def _read_arrow_ipc(data_file: DataFile) -> Iterator[RawRow]:
    pyarrow = _import_pyarrow(data_file, "ipc")

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


def _import_pyarrow(data_file: DataFile, submodule: str) -> ModuleType:
    try:
        importlib.import_module(f"pyarrow.{submodule}")
        return importlib.import_module("pyarrow")
    except ImportError:
        pass
    raise UsageError(
        ErrorCode.USAGE,
        f"{data_file.name} needs pyarrow",
        expected="pyarrow",
        found="no such package",
        hint='pip install "confidential-trainer[validate]", or convert the file to JSONL',
    )


def _read_batches(batches: Callable[[], Iterator[Any]], data_file: DataFile, pyarrow: Any) -> Iterator[RawRow]:
    index = 0
    for batch in _hide_errors(batches, data_file, pyarrow):
        # A file may be one large batch: convert slices of it, so that few rows exist as Python objects at a time.
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield from _convert_slice(batch.slice(start, BATCH_ROWS), data_file, index + start, pyarrow)
        index += batch.num_rows
    data_file.on_bytes_read(data_file.path.stat().st_size)


def _hide_errors(batches: Callable[[], Iterator[Any]], data_file: DataFile, pyarrow: Any) -> Iterator[Any]:
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


def _convert_slice(batch: Any, data_file: DataFile, first_index: int, pyarrow: Any) -> Iterator[RawRow]:
    try:
        objects = batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        # A value has no Python form. Convert row by row, so that only the row that holds it is refused.
        for offset in range(batch.num_rows):
            yield _convert_row(batch.slice(offset, 1), data_file, first_index + offset, pyarrow)
    else:
        yield from map(remove_nulls, objects)


def _convert_row(batch: Any, data_file: DataFile, index: int, pyarrow: Any) -> RawRow:
    try:
        return remove_nulls(batch.to_pylist()[0])
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return row_error(
            data_file.location(index),
            "not readable",
            expected="text in UTF-8, numbers, lists and structs",
            found="something else",
        )


PARQUET: Final = FileFormat((".parquet",), _read_parquet, compressible=False)
ARROW_IPC: Final = FileFormat((".arrow", ".feather", ".ipc"), _read_arrow_ipc, compressible=False)
