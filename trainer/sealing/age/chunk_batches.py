"""Batches of chunks: the unit of work that a thread encrypts or decrypts at a time, and their reusable buffers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Self

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from trainer.sealing.age.payload import PayloadOperation


class ChunkBatch:
    """An input and an output buffer for one batch.

    Args:
        operation: ENCRYPT or DECRYPT.

    Attributes:
        source: buffer for a full batch of input, of which the first `source_bytes` bytes are valid.
        target: buffer for a full batch of output, of which the first `target_bytes` bytes are valid.
    """

    def __init__(self, operation: PayloadOperation) -> None:
        self._operation = operation
        self.source = memoryview(bytearray(operation.source_batch_bytes))
        self.target = memoryview(bytearray(operation.target_batch_bytes))
        self.source_bytes = 0
        self.target_bytes = 0

    @property
    def input(self) -> memoryview:
        """The valid part of `source`."""
        return self.source[: self.source_bytes]

    @property
    def output(self) -> memoryview:
        """The valid part of `target`."""
        return self.target[: self.target_bytes]

    def process(self, cipher: ChaCha20Poly1305, first_index: int, *, ends: bool) -> Self:
        """Encrypts or decrypts `input` into `output`; returns this batch, as the result of a thread's task.

        Args:
            cipher: ChaCha20-Poly1305 under the payload key.
            first_index: index of the first chunk in the payload.
            ends: whether this is the last batch of the payload.
        """
        self.target_bytes = self._operation.apply(
            cipher, first_index, self.input, self.target, ends
        )
        return self


class ChunkBatchPool:
    """Reuses batches, so that memory is bounded by the number of batches in flight."""

    def __init__(self, operation: PayloadOperation) -> None:
        self._operation = operation
        self._free: list[ChunkBatch] = []

    def acquire(self) -> ChunkBatch:
        """Returns a batch without valid bytes; its buffers may hold bytes of an earlier batch."""
        batch = self._free.pop() if self._free else ChunkBatch(self._operation)
        batch.source_bytes = batch.target_bytes = 0
        return batch

    def release(self, batch: ChunkBatch) -> None:
        """Makes a batch available again; the caller no longer uses its buffers."""
        self._free.append(batch)


def read_batches(
    source: io.BufferedReader, pool: ChunkBatchPool
) -> Iterator[tuple[ChunkBatch, bool]]:
    """Reads a stream to its end in batches.

    Yields:
        Each batch, and whether it is the last one. The last batch is empty only if the stream is.
    """
    # The last chunk has another nonce, and only the read after a full batch shows whether that batch was the
    # last one. So this reads one batch ahead.
    following: ChunkBatch | None = _read_batch(source, pool)
    while (batch := following) is not None:
        following = _read_batch(source, pool) if batch.source_bytes == len(batch.source) else None
        if following is not None and not following.source_bytes:
            pool.release(following)
            following = None
        yield batch, following is None


def _read_batch(source: io.BufferedReader, pool: ChunkBatchPool) -> ChunkBatch:
    batch = pool.acquire()
    while batch.source_bytes < len(batch.source) and (
        size := source.readinto(batch.source[batch.source_bytes :])
    ):
        batch.source_bytes += size
    return batch
