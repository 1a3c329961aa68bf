"""Streams of any making: what reads and writes here must not depend on where bytes come from."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from trainer.sealing.age.ordered_thread_pool import ChunkBatch, ChunkBatchPool


class _Unowned(io.RawIOBase):
    """A stream whose owner closes it: letting go of this object leaves it open."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: WriteableBuffer
        if isinstance(self._source, io.RawIOBase | io.BufferedIOBase):
            size = self._source.readinto(buffer)
            if size is None:  # a reader would take that for the end
                raise BlockingIOError("the source has no data now")
            return size
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def buffered_reader(source: BinaryIO) -> io.BufferedReader:
    """`source` with lines and a look ahead. May read further than asked; never closes `source`."""
    return io.BufferedReader(_Unowned(source))


def read_batches(source: io.BufferedReader, buffers: ChunkBatchPool) -> Iterator[tuple[ChunkBatch, bool]]:
    """Read to the end in batches, each with whether it is the last; the last is empty only if all is.

    Reads one batch ahead: only what comes after a full batch shows that it is not the last one.
    """
    following: ChunkBatch | None = _read_batch(source, buffers)
    while (batch := following) is not None:
        following = _read_batch(source, buffers) if batch.filled == len(batch.source) else None
        if following is not None and not following.filled:
            buffers.give_back(following)
            following = None
        yield batch, following is None


def _read_batch(source: io.BufferedReader, buffers: ChunkBatchPool) -> ChunkBatch:
    batch = buffers.get()
    while batch.filled < len(batch.source) and (size := source.readinto(batch.source[batch.filled :])):
        batch.filled += size
    return batch


def write_all(target: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data`, also to a raw stream that takes a part at a time.

    Raises:
        BlockingIOError: the stream takes nothing now.
    """
    left = memoryview(data)
    while left:
        written = cast("int | None", target.write(left))
        if written is None:
            raise BlockingIOError("the target does not take data now")
        left = left[written:]
