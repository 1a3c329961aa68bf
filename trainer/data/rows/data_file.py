"""A data file of the provider: its bytes, counted and decompressed within bounds, and the errors that name it."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from trainer.data.rows.row import RowLocation
from trainer.data.rows.values import row_error
from trainer.errors import DataError, ErrorCode

MAX_ROW_BYTES: Final = 64 << 20
"""Longest acceptable row. Rows are far smaller; a file that is not what its name says may be one endless line."""

MAX_DECOMPRESSION_RATIO: Final = 200
"""How many times its own size a gzip file may decompress to, beyond `FREE_DECOMPRESSED_BYTES`; text: 3 to 20."""

FREE_DECOMPRESSED_BYTES: Final = 64 << 20

_BUFFER_BYTES: Final = 1 << 20

_COMPRESSIONS: Final[Mapping[bytes, str]] = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh91AY&SY": "bzip2",
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
}
"""First bytes of compressed data, which are no text, → what it is called. Spreadsheets (.xlsx) are zip."""

BytesReadCallback = Callable[[int], None]
"""Receives the number of further bytes of a file that were read."""


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Attributes:
        path: where it is.
        name: its name in errors and in the bundle, relative to `data/`. Its suffix selects the format.
        on_bytes_read: called while the file is read.
    """

    path: Path
    name: str
    on_bytes_read: BytesReadCallback = lambda _count: None

    def open(self) -> BinaryIO:
        """Opens the file for reading as UTF-8 without a byte order mark.

        It decompresses a file whose name ends in `.gz`, and transcodes UTF-16 that begins with a byte order mark.
        """
        raw = cast(
            "BinaryIO",
            io.BufferedReader(_CountingReader(self.path, self.on_bytes_read), _BUFFER_BYTES),
        )
        if self.name.lower().endswith(".gz"):
            raw = cast("BinaryIO", io.BufferedReader(_BoundedGzipReader(raw, self), _BUFFER_BYTES))
        try:
            start = cast("io.BufferedReader", raw).peek(_BUFFER_BYTES)
            self._require_uncompressed(start)
        except DataError:
            raw.close()
            raise
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return cast("BinaryIO", io.BufferedReader(_TranscodingReader(raw, self), _BUFFER_BYTES))
        if start.startswith(codecs.BOM_UTF8):
            raw.read(len(codecs.BOM_UTF8))
        return raw

    def _require_uncompressed(self, start: bytes) -> None:
        found = next(
            (name for first, name in _COMPRESSIONS.items() if start.startswith(first)), None
        )
        if found is not None:
            raise DataError(
                ErrorCode.DATASET_INVALID,
                "the file is compressed",
                file=self.name,
                expected="text, or text that is compressed once and named .gz",
                found=f"{found} data",
                hint="decompress it, or compress it with gzip; export a spreadsheet as CSV",
            )

    def lines(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yields the lines of an opened file, with their line ends.

        Raises:
            DataError: a line is longer than `MAX_ROW_BYTES`.
        """
        index = 0
        # One byte more than a row may have: a file without line ends is refused before it fills the memory.
        while line := stream.readline(MAX_ROW_BYTES + 1):
            self.check_row_size(index, len(line))
            yield line
            index += 1

    def location(self, index: int) -> RowLocation:
        """Returns the location of a row of this file."""
        return RowLocation(self.name, index)

    def check_row_size(self, index: int, size: int) -> None:
        """Refuses a row of more than `MAX_ROW_BYTES`.

        Raises:
            DataError: the row is too long.
        """
        if size > MAX_ROW_BYTES:
            expected = f"at most {MAX_ROW_BYTES} bytes"
            raise row_error(
                self.location(index), "the row is too long", expected=expected, found="more"
            )

    def unreadable(self, expected: str, *, row: int | None = None) -> DataError:
        """Returns the error for a file that cannot be read, or not beyond `row`."""
        return DataError(
            ErrorCode.DATASET_INVALID,
            "the file cannot be read",
            file=self.name,
            row=row,
            expected=expected,
            found="something else",
            hint="the suffix of the file's name selects the format that the file must have",
        )

    def not_utf8(self, problem: str, *, row: int | None = None) -> DataError:
        """Returns the error for a file that is not UTF-8; `problem` says where, such as `at byte 3 of line 2`."""
        return DataError(
            ErrorCode.DATASET_INVALID,
            "the file is not UTF-8",
            file=self.name,
            row=row,
            expected="UTF-8, or UTF-16 that begins with a byte order mark",
            found=f"something else {problem}",
            hint="save it as UTF-8 (spreadsheets call that CSV UTF-8), or convert it, "
            "for example with iconv -f WINDOWS-1252 -t UTF-8",
        )


class _CountingReader(io.RawIOBase):
    """The bytes of a file, counted as they are read."""

    def __init__(self, path: Path, on_bytes_read: BytesReadCallback) -> None:
        self._file = path.open("rb", buffering=0)
        self._on_bytes_read = on_bytes_read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer) or 0
        self._on_bytes_read(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _BoundedGzipReader(io.RawIOBase):
    """The decompressed bytes of a gzip file, up to a limit that stops decompression bombs."""

    def __init__(self, compressed: BinaryIO, data_file: DataFile) -> None:
        self._compressed = compressed
        self._gzip = gzip.GzipFile(fileobj=compressed)
        self._data_file = data_file
        size = data_file.path.stat().st_size
        self._bytes_left = max(FREE_DECOMPRESSED_BYTES, MAX_DECOMPRESSION_RATIO * size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            count = self._gzip.readinto(buffer)
        except (EOFError, zlib.error, OSError):
            count = -1
        if count < 0:
            # Raised outside the handler, so that the library's error does not become the context.
            raise self._data_file.unreadable("a complete gzip file")
        # Counted as it is decompressed: a gzip file states its length modulo 2**32 only (RFC 1952, section 2.3.1).
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise DataError(
                ErrorCode.DATASET_TOO_LARGE,
                "the file decompresses to far more than text does",
                file=self._data_file.name,
                expected=f"at most {MAX_DECOMPRESSION_RATIO} times its size",
                found="more",
            )
        return count

    def close(self) -> None:
        self._gzip.close()
        self._compressed.close()
        super().close()


class _TranscodingReader(io.RawIOBase):
    """The text of a UTF-16 file that begins with a byte order mark, as UTF-8 without one."""

    def __init__(self, encoded: BinaryIO, data_file: DataFile) -> None:
        self._encoded = encoded
        self._data_file = data_file
        self._decoder = codecs.getincrementaldecoder("utf-16")()
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = b" "
        while block and not self._pending:
            block = self._encoded.read(_BUFFER_BYTES)
            self._pending = self._transcode(block)
        count = min(len(buffer), len(self._pending))
        buffer[:count], self._pending = self._pending[:count], self._pending[count:]
        return count

    def _transcode(self, block: bytes) -> bytes:
        try:
            return self._decoder.decode(block, final=not block).encode()
        except UnicodeDecodeError:
            pass
        # Raised outside the handler: the decoder's error has the bytes.
        raise self._data_file.unreadable("UTF-16, as its byte order mark says")

    def close(self) -> None:
        self._encoded.close()
        super().close()
