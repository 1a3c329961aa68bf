"""Reading from and writing to binary streams of any kind: files, pipes, sockets, raw or buffered."""

from __future__ import annotations

import io
from typing import BinaryIO, cast


class _NonClosingReader(io.RawIOBase):
    """A raw view of a stream; closing it or collecting it as garbage leaves the stream open."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: WriteableBuffer
        """Fills `buffer` with the next bytes of the stream; returns 0 at its end."""
        if isinstance(self._source, io.RawIOBase | io.BufferedIOBase):
            size = self._source.readinto(buffer)
            # A non-blocking stream; `BufferedReader` would take None for the end of the file.
            if size is None:
                raise BlockingIOError("the source has no data now")
            return size
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def buffered_reader(source: BinaryIO) -> io.BufferedReader:
    """Wraps `source` so that it has `readline` and `peek`.

    The reader may take more bytes from `source` than were asked for, and never closes it.
    """
    return io.BufferedReader(_NonClosingReader(source))


def write_all(target: BinaryIO, data: bytes | memoryview) -> None:
    """Writes all of `data`; a raw stream may take only a part of it at a time.

    Raises:
        BlockingIOError: the stream is non-blocking and takes nothing now.
    """
    remaining = memoryview(data)
    while remaining:
        written = cast("int | None", target.write(remaining))
        if written is None:
            raise BlockingIOError("the target does not take data now")
        remaining = remaining[written:]
