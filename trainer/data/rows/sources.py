"""The bytes of a data file: counted as they are read, inflated within bounds."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, cast

from trainer.errors import DataError, ErrorCode

MAX_INFLATION: Final = 200
"""How many times its own size a gzipped file may inflate to, beyond `FREE_INFLATED_BYTES`; text: 3 to 20."""

FREE_INFLATED_BYTES: Final = 64 << 20

_BLOCK: Final = 1 << 20

Advance = Callable[[int], None]
"""Told how many further bytes of a file were read."""


class _Counted(io.RawIOBase):
    """The bytes of a file, counted as they are read."""

    def __init__(self, path: Path, advance: Advance) -> None:
        self._file = path.open("rb", buffering=0)
        self._advance = advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer) or 0
        self._advance(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Bounded(io.RawIOBase):
    """What a gzipped file inflates to, up to a limit."""

    def __init__(self, source: BinaryIO, name: str, size: int) -> None:
        self._source = source
        self._file = gzip.GzipFile(fileobj=source)
        self._name = name
        self._left = max(FREE_INFLATED_BYTES, MAX_INFLATION * size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._inflate(buffer)
        self._left -= count
        if self._left < 0:
            raise DataError(
                ErrorCode.DATASET_TOO_LARGE,
                "the file inflates to far more than text does",
                file=self._name,
                expected=f"at most {MAX_INFLATION} times its size",
                found="more",
            )
        return count

    def _inflate(self, buffer: memoryview) -> int:
        try:
            return self._file.readinto(buffer)
        except (EOFError, zlib.error, OSError):
            pass
        raise broken(self._name, "a whole gzip file")

    def close(self) -> None:
        self._file.close()
        self._source.close()
        super().close()


def open_bytes(path: Path, name: str, advance: Advance) -> BinaryIO:
    """The bytes of a file; of what it inflates to, if its name ends in `.gz`."""
    file = cast("BinaryIO", io.BufferedReader(_Counted(path, advance), _BLOCK))
    if name.lower().endswith(".gz"):
        return cast("BinaryIO", io.BufferedReader(_Bounded(file, name, path.stat().st_size), _BLOCK))
    return file


def broken(name: str, expected: str, *, row: int | None = None) -> DataError:
    """The error for a file that cannot be read (any further)."""
    return DataError(
        ErrorCode.DATASET_INVALID,
        "the file cannot be read",
        file=name,
        row=row,
        expected=expected,
        found="something else",
        hint="the ending of its name says what a file must be",
    )
