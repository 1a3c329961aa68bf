"""Parquet, Arrow and Feather files → objects, a batch at a time.

pyarrow is imported when such a file is opened. Its errors quote values, so nothing of them is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from trainer.data.rows.records import Record
from trainer.data.rows.row import Row
from trainer.data.rows.sources import broken
from trainer.data.rows.values import refused, without_nulls
from trainer.errors import ErrorCode, UsageError

BATCH_ROWS: Final = 512

_ARROW_FILE: Final = b"ARROW1"


def parquet(path: Path, name: str) -> Iterator[Record]:
    """Rows of a Parquet file, a row group's columns at a time.

    Raises:
        DataError: it is not one.
        UsageError: pyarrow is not installed.
    """
    arrow = _pyarrow(name, "parquet")
    return _rows(_guarded(lambda: _parquet_batches(arrow, path), name, arrow), name, arrow)


def arrow_ipc(path: Path, name: str) -> Iterator[Record]:
    """Rows of an Arrow file: as a file (Feather 2) or as a stream (Hugging Face datasets).

    Raises:
        DataError: it is neither.
        UsageError: pyarrow is not installed.
    """
    arrow = _pyarrow(name, "ipc")
    return _rows(_guarded(lambda: _ipc_batches(arrow, path), name, arrow), name, arrow)


def _pyarrow(name: str, part: str) -> ModuleType:
    import importlib  # noqa: PLC0415 -- only where a table is read

    try:
        importlib.import_module(f"pyarrow.{part}")
        return importlib.import_module("pyarrow")
    except ImportError:
        pass
    raise UsageError(
        ErrorCode.USAGE,
        f"{name} needs pyarrow",
        expected="pyarrow",
        found="no such package",
        hint='pip install "confidential-trainer[validate]", or convert the file to JSONL',
    )


def _parquet_batches(arrow: Any, path: Path) -> Iterator[Any]:
    with arrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)


def _ipc_batches(arrow: Any, path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        as_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    with arrow.memory_map(str(path)) as source:
        if as_file:
            reader = arrow.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from arrow.ipc.open_stream(source)


def _guarded(make: Any, name: str, arrow: Any) -> Iterator[Any]:
    """The batches of `make()`, with errors that tell nothing but where they happened."""
    batches, done = make(), 0
    while True:
        try:
            batch = next(batches, None)
        except (arrow.ArrowException, OSError, ValueError, EOFError):
            break
        if batch is None:
            return
        done += batch.num_rows
        yield batch
    raise broken(name, "a whole Parquet, Arrow or Feather file", row=done)


def _rows(batches: Iterator[Any], name: str, arrow: Any) -> Iterator[Record]:
    index = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            yield from _objects(part, name, index + start, arrow)
        index += batch.num_rows


def _objects(batch: Any, name: str, first: int, arrow: Any) -> Iterator[Record]:
    try:
        whole: list[object] | None = batch.to_pylist()
    except (arrow.ArrowException, ValueError, OverflowError):
        whole = None  # one of them holds what Python has no value for: find out which
    for offset in range(batch.num_rows):
        if whole is not None:
            yield without_nulls(whole[offset])
        else:
            yield _object(batch.slice(offset, 1), Row(name, first + offset), arrow)


def _object(batch: Any, place: Row, arrow: Any) -> Record:
    try:
        return without_nulls(batch.to_pylist()[0])
    except (arrow.ArrowException, ValueError, OverflowError):
        pass
    return refused(
        place, "not readable", expected="text in UTF-8, numbers, lists and structs", found="something else"
    )
