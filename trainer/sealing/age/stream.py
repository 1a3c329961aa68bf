"""Encrypting and decrypting streams: any source, any target, cipher work in threads, memory bounded.

Each chunk is authenticated before a byte of it is handed on, but that nothing is missing shows only at the end.
What was read is whole once `decrypt` returned, or the context of `decrypting_reader` was left without an error.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, cast

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from trainer.sealing.age.armor import ArmorReader, is_armored
from trainer.sealing.age.byte_streams import buffered_reader, read_batches, write_all
from trainer.sealing.age.header import create_header, read_header
from trainer.sealing.age.identity import Identity, Recipient
from trainer.sealing.age.ordered_thread_pool import ChunkBatch, ChunkBatchPool, OrderedThreadPool
from trainer.sealing.age.payload import BATCH_CHUNKS, DECRYPT, ENCRYPT, PayloadOperation

ProgressCallback = Callable[[int], None]
"""Is told how many bytes of plaintext are done, in all."""


def encrypt(
    source: BinaryIO,
    target: BinaryIO,
    recipients: Sequence[Recipient],
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Encrypt what is left in `source` into `target`.

    Args:
        source: plaintext; need not be seekable.
        target: takes the age file; need not be seekable. Incomplete, and not to be opened by anyone, on error.
        recipients: of one recipient type.
        progress: told of plaintext bytes done.

    Raises:
        UsageError: RECIPIENT_INVALID: none, or of different recipient types.
    """
    with _sealing(target, recipients, progress) as output:
        for batch, ends in read_batches(buffered_reader(source), output.buffers):
            output.put(batch, ends=ends)


def decrypt(
    source: BinaryIO,
    target: BinaryIO,
    identities: Sequence[Identity],
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Decrypt an age file, armored or not. On any error the caller must discard what `target` got.

    Args:
        source: the file, from its start to its end; need not be seekable.
        target: takes the plaintext.
        identities: tried in turn.
        progress: told of plaintext bytes done.

    Raises:
        SealingError: HEADER_INVALID, ARMOR_INVALID, NO_IDENTITY_MATCH, HEADER_MAC or PAYLOAD_INVALID.
    """
    with _opening(source, identities, progress) as reader:
        while block := reader.block():
            write_all(target, block)


@contextmanager
def encrypting_writer(
    target: BinaryIO, recipients: Sequence[Recipient], *, progress: ProgressCallback | None = None
) -> Iterator[BinaryIO]:
    """A stream to write plaintext to (by `tarfile`, for one); the age file goes to `target`.

    The last chunk is written when the context is left without an error. Otherwise it stays missing, and nobody
    can take what is in `target` for a whole file.

    Raises:
        UsageError: RECIPIENT_INVALID: none, or of different recipient types.
    """
    with _sealing(target, recipients, progress) as output:
        writer = EncryptingWriter(output)
        yield cast("BinaryIO", writer)
        writer.finish()


@contextmanager
def decrypting_reader(
    source: BinaryIO, identities: Sequence[Identity], *, progress: ProgressCallback | None = None
) -> Iterator[BinaryIO]:
    """A stream to read plaintext from. Leaving its context verifies what was not read, to the last chunk.

    Raises:
        SealingError: as `decrypt`; also from reads, and on leaving the context.
    """
    with _opening(source, identities, progress) as reader:
        yield io.BufferedReader(reader)
        while reader.block():
            pass


@contextmanager
def _sealing(
    target: BinaryIO, recipients: Sequence[Recipient], progress: ProgressCallback | None
) -> Iterator[_SealedOutput]:
    prefix, key = create_header(recipients)
    write_all(target, prefix)
    with OrderedThreadPool[ChunkBatch]() as threads:
        output = _SealedOutput(target, key, threads, progress)
        yield output
        output.drain()


@contextmanager
def _opening(
    source: BinaryIO, identities: Sequence[Identity], progress: ProgressCallback | None
) -> Iterator[DecryptingReader]:
    stream = buffered_reader(source)
    if is_armored(stream.peek()):
        stream = io.BufferedReader(ArmorReader(cast("BinaryIO", stream)))
    opening = read_header(cast("BinaryIO", stream), identities)
    with OrderedThreadPool[ChunkBatch]() as threads:
        yield DecryptingReader(stream, opening.key, threads, progress)


def _apply(
    direction: PayloadOperation, key: ChaCha20Poly1305, first: int, batch: ChunkBatch, *, ends: bool
) -> ChunkBatch:
    batch.done = direction.apply(key, first, batch.source[: batch.filled], batch.target, ends)
    return batch


class _SealedOutput:
    """Has batches of plaintext sealed in threads and writes them in order."""

    def __init__(
        self,
        target: BinaryIO,
        key: ChaCha20Poly1305,
        threads: OrderedThreadPool[ChunkBatch],
        progress: ProgressCallback | None,
    ) -> None:
        self.buffers = ChunkBatchPool(ENCRYPT)
        self._target = target
        self._key = key
        self._threads = threads
        self._progress = progress
        self._submitted = 0  # chunks
        self._done = 0

    def put(self, batch: ChunkBatch, *, ends: bool) -> None:
        if self._threads.full:
            self._write_oldest()
        self._threads.submit(partial(_apply, ENCRYPT, self._key, self._submitted, batch, ends=ends))
        self._submitted += BATCH_CHUNKS

    def drain(self) -> None:
        while not self._threads.empty:
            self._write_oldest()

    def _write_oldest(self) -> None:
        batch = self._threads.take()
        write_all(self._target, batch.output)
        self._done += batch.filled
        self.buffers.give_back(batch)
        if self._progress:
            self._progress(self._done)


class EncryptingWriter(io.RawIOBase):
    """Collects what is written in batches and has them sealed.

    `close()` does not end the file; `finish()` does. A file that nobody finished cannot be opened.
    """

    def __init__(self, output: _SealedOutput) -> None:
        self._output = output
        self._batch = output.buffers.get()
        self._position = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes of plaintext taken."""
        return self._position

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed: ReadableBuffer
        """Take all of `data`."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            taken = self._take(left)
            left = left[taken:]
        self._position += size
        return size

    def finish(self) -> None:
        """Hand over the last batch."""
        self._output.put(self._batch, ends=True)

    def _take(self, data: memoryview) -> int:
        if self._batch.filled == len(self._batch.source):  # there is more, so it is not the last
            self._output.put(self._batch, ends=False)
            self._batch = self._output.buffers.get()
        room = self._batch.source[self._batch.filled :]
        size = min(len(room), len(data))
        room[:size] = data[:size]
        self._batch.filled += size
        return size


class DecryptingReader(io.RawIOBase):
    """Reads ahead, has batches opened in threads, hands out authenticated plaintext in order."""

    def __init__(
        self,
        source: io.BufferedReader,
        key: ChaCha20Poly1305,
        threads: OrderedThreadPool[ChunkBatch],
        progress: ProgressCallback | None,
    ) -> None:
        self._key = key
        self._threads = threads
        self._buffers = ChunkBatchPool(DECRYPT)
        self._incoming = read_batches(source, self._buffers)
        self._current: ChunkBatch | None = None
        self._left = memoryview(b"")
        self._submitted = 0  # chunks
        self._progress = progress
        self._done = 0
        self._failure: BaseException | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed: WriteableBuffer
        """Fill `buffer` as far as the batch at hand goes; 0 only at the authenticated end."""
        if not self._left:
            self._left = self.block()
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def block(self) -> memoryview:
        """The next batch of plaintext, valid until the next call; empty only at the authenticated end.

        Raises:
            SealingError: PAYLOAD_INVALID; again on every later call.
        """
        if self._failure:
            raise self._failure  # what follows a failed batch must never be handed out
        try:
            return self._next()
        except BaseException as error:
            self._failure = error
            raise

    def _next(self) -> memoryview:
        if self._current:
            self._buffers.give_back(self._current)
            self._current = None
        while not self._threads.full and (incoming := next(self._incoming, None)):
            batch, ends = incoming
            self._threads.submit(partial(_apply, DECRYPT, self._key, self._submitted, batch, ends=ends))
            self._submitted += BATCH_CHUNKS
        if self._threads.empty:
            return memoryview(b"")
        self._current = self._threads.take()
        self._done += self._current.done
        if self._progress:
            self._progress(self._done)
        return self._current.output
