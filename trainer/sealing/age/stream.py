"""Encryption and decryption of streams: any source, any target, cipher work in threads, bounded memory.

A chunk is authenticated before a byte of it is handed out. That no chunk is missing at the end shows only with the
last one: plaintext is complete once `decrypt` has returned, or the context of `decrypting_reader` was left without
an error.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, cast

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from trainer.sealing.age.armor import ArmorReader, is_armored
from trainer.sealing.age.byte_streams import buffered_reader, write_all
from trainer.sealing.age.chunk_batches import ChunkBatch, ChunkBatchPool, read_batches
from trainer.sealing.age.header import create_header, read_header
from trainer.sealing.age.identity import Identity, Recipient
from trainer.sealing.age.ordered_thread_pool import OrderedThreadPool
from trainer.sealing.age.payload import BATCH_CHUNKS, DECRYPT, ENCRYPT

ProgressCallback = Callable[[int], None]
"""Called with the number of plaintext bytes processed so far."""


def encrypt(
    source: BinaryIO,
    target: BinaryIO,
    recipients: Sequence[Recipient],
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Encrypts the rest of `source` into `target`.

    Args:
        source: plaintext; need not be seekable.
        target: receives the age file; need not be seekable. After an error it is incomplete and does not decrypt.
        recipients: of one recipient type.
        progress: called with the number of plaintext bytes encrypted so far.

    Raises:
        UsageError: RECIPIENT_INVALID: no recipient, or recipients of different types.
    """
    with _batch_encryptor(target, recipients, progress) as encryptor:
        for batch, ends in read_batches(buffered_reader(source), encryptor.pool):
            encryptor.submit(batch, ends=ends)


def decrypt(
    source: BinaryIO,
    target: BinaryIO,
    identities: Sequence[Identity],
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Decrypts an age file, armored or not. On any error the caller must discard what `target` received.

    Args:
        source: the file, from its start to its end; need not be seekable.
        target: receives the plaintext.
        identities: tried in turn.
        progress: called with the number of plaintext bytes decrypted so far.

    Raises:
        SealingError: HEADER_INVALID, ARMOR_INVALID, NO_IDENTITY_MATCH, HEADER_MAC or PAYLOAD_INVALID.
    """
    with _payload_reader(source, identities, progress) as reader:
        while plaintext := reader.read_batch():
            write_all(target, plaintext)


@contextmanager
def encrypting_writer(
    target: BinaryIO,
    recipients: Sequence[Recipient],
    *,
    file_key: bytes | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[BinaryIO]:
    """Yields a stream to write plaintext to; the age file goes to `target`. `file_key` is as for `create_header`.

    The last chunk is written when the context is left without an error. After an error the last chunk is missing,
    so what is in `target` does not decrypt.

    Raises:
        UsageError: RECIPIENT_INVALID: no recipient, or recipients of different types.
    """
    with _batch_encryptor(target, recipients, progress, file_key) as encryptor:
        writer = EncryptingWriter(encryptor)
        yield cast("BinaryIO", writer)
        # Not after an error: with its last chunk, an incomplete plaintext would pass for a complete one.
        writer.finish()


@contextmanager
def decrypting_reader(
    source: BinaryIO,
    identities: Sequence[Identity],
    *,
    header: bytes | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[BinaryIO]:
    """Yields a stream to read plaintext from; leaving the context verifies the chunks that were not read.

    `header` counts in place of the file's own, as for `read_header`.

    Raises:
        SealingError: as `decrypt`; also from reads, and on leaving the context.
    """
    with _payload_reader(source, identities, progress, header) as reader:
        yield io.BufferedReader(reader)
        # A caller that stopped reading early would otherwise not notice that the file was cut short.
        while reader.read_batch():
            pass


@contextmanager
def _batch_encryptor(
    target: BinaryIO,
    recipients: Sequence[Recipient],
    progress: ProgressCallback | None,
    file_key: bytes | None = None,
) -> Iterator[_BatchEncryptor]:
    header, cipher = create_header(recipients, file_key)
    write_all(target, header)
    with OrderedThreadPool[ChunkBatch]() as threads:
        encryptor = _BatchEncryptor(target, cipher, threads, progress)
        yield encryptor
        while not threads.is_empty:
            encryptor.write_oldest()


@contextmanager
def _payload_reader(
    source: BinaryIO,
    identities: Sequence[Identity],
    progress: ProgressCallback | None,
    replacement: bytes | None = None,
) -> Iterator[DecryptingReader]:
    stream = buffered_reader(source)
    if is_armored(stream.peek()):
        stream = io.BufferedReader(ArmorReader(cast("BinaryIO", stream)))
    header = read_header(cast("BinaryIO", stream), identities, replacement)
    with OrderedThreadPool[ChunkBatch]() as threads:
        yield DecryptingReader(stream, header.payload_cipher, threads, progress)


class _BatchEncryptor:
    """Encrypts batches of plaintext in threads and writes them in order.

    Attributes:
        pool: where callers get batches to fill.
    """

    def __init__(
        self,
        target: BinaryIO,
        cipher: ChaCha20Poly1305,
        threads: OrderedThreadPool[ChunkBatch],
        progress: ProgressCallback | None,
    ) -> None:
        self.pool = ChunkBatchPool(ENCRYPT)
        self._target = target
        self._cipher = cipher
        self._threads = threads
        self._progress = progress
        self._next_index = 0  # of the first chunk of the next batch
        self._plaintext_bytes = 0

    def submit(self, batch: ChunkBatch, *, ends: bool) -> None:
        """Queues a batch for encryption; `ends` marks the last one. Blocks while all threads are busy."""
        if self._threads.is_full:
            self.write_oldest()
        # Every batch but the last is full, so the index of the next chunk does not depend on this one's size.
        self._threads.submit(partial(batch.process, self._cipher, self._next_index, ends=ends))
        self._next_index += BATCH_CHUNKS

    def write_oldest(self) -> None:
        """Waits for the batch that was submitted first, of those not yet written, and writes it."""
        batch = self._threads.take_result()
        write_all(self._target, batch.output)
        self._plaintext_bytes += batch.source_bytes
        self.pool.release(batch)
        if self._progress:
            self._progress(self._plaintext_bytes)


class EncryptingWriter(io.RawIOBase):
    """Collects written plaintext in batches and encrypts them.

    `finish` ends the payload; `close` does not. A file that was not finished does not decrypt.
    """

    def __init__(self, encryptor: _BatchEncryptor) -> None:
        self._encryptor = encryptor
        self._batch = encryptor.pool.acquire()
        self._position = 0

    def writable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the number of plaintext bytes written."""
        return self._position

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed: ReadableBuffer
        """Writes all of `data`; returns its size in bytes."""
        remaining = memoryview(data).cast("B")
        size = len(remaining)
        while remaining:
            if self._batch.source_bytes == len(self._batch.source):
                # A full batch waits until more data arrives, because only then it is known not to be the last.
                self._encryptor.submit(self._batch, ends=False)
                self._batch = self._encryptor.pool.acquire()
            free = self._batch.source[self._batch.source_bytes :]
            copied = min(len(free), len(remaining))
            free[:copied] = remaining[:copied]
            self._batch.source_bytes += copied
            remaining = remaining[copied:]
        self._position += size
        return size

    def finish(self) -> None:
        """Encrypts the last batch."""
        self._encryptor.submit(self._batch, ends=True)


class DecryptingReader(io.RawIOBase):
    """Reads ahead, decrypts batches in threads, and returns authenticated plaintext in order."""

    def __init__(
        self,
        source: io.BufferedReader,
        cipher: ChaCha20Poly1305,
        threads: OrderedThreadPool[ChunkBatch],
        progress: ProgressCallback | None,
    ) -> None:
        self._cipher = cipher
        self._threads = threads
        self._pool = ChunkBatchPool(DECRYPT)
        self._incoming = read_batches(source, self._pool)
        self._current: ChunkBatch | None = None
        self._unread = memoryview(b"")
        self._next_index = 0  # of the first chunk of the next batch
        self._progress = progress
        self._plaintext_bytes = 0
        self._failure: BaseException | None = None

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed: WriteableBuffer
        """Fills `buffer` from the current batch; returns 0 only at the authenticated end."""
        if not self._unread:
            self._unread = self.read_batch()
        size = min(len(buffer), len(self._unread))
        buffer[:size] = self._unread[:size]
        self._unread = self._unread[size:]
        return size

    def read_batch(self) -> memoryview:
        """Returns the next batch of plaintext, valid until the next call; empty only at the authenticated end.

        Raises:
            SealingError: PAYLOAD_INVALID, and the same on every later call.
        """
        # After a failure nothing more is handed out: a caller that ignored the error could otherwise take the
        # batches after a missing one for the continuation.
        if self._failure:
            raise self._failure
        try:
            return self._decrypt_next()
        except BaseException as error:
            self._failure = error
            raise

    def _decrypt_next(self) -> memoryview:
        if self._current:
            self._pool.release(self._current)
            self._current = None
        # All threads get work before this waits for the oldest batch.
        while not self._threads.is_full and (incoming := next(self._incoming, None)):
            batch, ends = incoming
            self._threads.submit(partial(batch.process, self._cipher, self._next_index, ends=ends))
            self._next_index += BATCH_CHUNKS
        if self._threads.is_empty:
            return memoryview(b"")
        self._current = self._threads.take_result()
        self._plaintext_bytes += self._current.target_bytes
        if self._progress:
            self._progress(self._plaintext_bytes)
        return self._current.output
