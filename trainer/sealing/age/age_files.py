"""File to file: each thread reads its batch with `pread`, encrypts or decrypts it, and writes it with `pwrite`.

Chunks have fixed sizes, so a batch's offsets in both files are known without the batches before it. Plaintext
reaches the disk before the last chunk has authenticated; therefore the target has a temporary name until all
chunks have.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from trainer.atomic_files import (
    PRIVATE_MODE,
    SHARED_MODE,
    replace_atomically,
    translate_storage_errors,
    write_at,
)
from trainer.sealing.age.armor import is_armored
from trainer.sealing.age.byte_streams import buffered_reader, write_all
from trainer.sealing.age.chunk_batches import ChunkBatch, ChunkBatchPool
from trainer.sealing.age.header import create_header, read_header
from trainer.sealing.age.identity import Identity, Recipient
from trainer.sealing.age.ordered_thread_pool import OrderedThreadPool
from trainer.sealing.age.payload import (
    BATCH_CHUNKS,
    DECRYPT,
    ENCRYPT,
    PayloadOperation,
    payload_invalid,
)
from trainer.sealing.age.stream import ProgressCallback, decrypt, encrypt


def encrypt_file(
    source: Path,
    target: Path,
    recipients: Sequence[Recipient],
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Encrypts a file. `target` is replaced atomically at the end and left as it was on any error.

    Args:
        source: plaintext; anything but a regular file is read as a stream.
        target: the age file, mode 0644 less the umask.
        recipients: of one recipient type.
        progress: called with the number of plaintext bytes encrypted so far.

    Raises:
        UsageError: RECIPIENT_INVALID, FILE_NOT_FOUND.
        UnavailableError: STORAGE_FULL.
        SealingError: PAYLOAD_INVALID: the source became shorter while it was read.
    """
    with (
        translate_storage_errors(),
        source.open("rb", buffering=0) as plain,
        replace_atomically(target, SHARED_MODE) as sealed,
    ):
        status = os.fstat(plain.fileno())
        if not stat.S_ISREG(status.st_mode):
            encrypt(plain, sealed, recipients, progress=progress)
            return
        header, cipher = create_header(recipients)
        write_all(sealed, header)
        transfer = _PayloadTransfer(
            ENCRYPT, cipher, plain.fileno(), 0, status.st_size, sealed.fileno(), len(header)
        )
        transfer.run(progress)


def decrypt_file(
    source: Path,
    target: Path,
    identities: Sequence[Identity],
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Decrypts a file. `target` appears once every chunk has authenticated, and not at all on any error.

    Args:
        source: an age file, armored or not; anything but a regular file is read as a stream.
        target: the plaintext, mode 0600.
        identities: tried in turn.
        progress: called with the number of plaintext bytes decrypted so far.

    Raises:
        SealingError: HEADER_INVALID, ARMOR_INVALID, NO_IDENTITY_MATCH, HEADER_MAC or PAYLOAD_INVALID.
        UsageError: FILE_NOT_FOUND.
        UnavailableError: STORAGE_FULL.
    """
    with (
        translate_storage_errors(),
        source.open("rb", buffering=0) as sealed,
        replace_atomically(target, PRIVATE_MODE) as plain,
    ):
        stream, status = buffered_reader(sealed), os.fstat(sealed.fileno())
        # Armor is base64 in lines, so a chunk is not at a fixed offset: it is decoded as a stream.
        if not stat.S_ISREG(status.st_mode) or is_armored(stream.peek()):
            decrypt(cast("BinaryIO", stream), plain, identities, progress=progress)
            return
        header = read_header(cast("BinaryIO", stream), identities)
        size = status.st_size - header.size
        transfer = _PayloadTransfer(
            DECRYPT, header.payload_cipher, sealed.fileno(), header.size, size, plain.fileno(), 0
        )
        transfer.run(progress)


@dataclass(frozen=True)
class _PayloadTransfer:
    """Encrypts or decrypts a payload from one file descriptor to another.

    Args:
        operation: ENCRYPT or DECRYPT.
        cipher: ChaCha20-Poly1305 under the payload key.
        source: descriptor to read from.
        source_start: offset of the first chunk in the source, in bytes.
        source_size: bytes of all chunks in the source.
        target: descriptor to write to.
        target_start: offset of the first chunk in the target, in bytes.
    """

    operation: PayloadOperation
    cipher: ChaCha20Poly1305
    source: int
    source_start: int
    source_size: int
    target: int
    target_start: int

    def run(self, progress: ProgressCallback | None) -> None:
        """Transfers all batches; raises the exception of the first batch, in file order, that failed."""
        pool, plaintext_bytes = ChunkBatchPool(self.operation), 0
        # Rounded up; an empty plaintext still has one batch, with one empty chunk.
        batch_count = max(1, -(-self.source_size // self.operation.source_batch_bytes))
        with OrderedThreadPool[ChunkBatch]() as threads:
            submitted = 0
            while submitted < batch_count or not threads.is_empty:
                if submitted < batch_count and not threads.is_full:
                    ends = submitted == batch_count - 1
                    threads.submit(
                        partial(self._transfer_batch, submitted, pool.acquire(), ends=ends)
                    )
                    submitted += 1
                    continue
                batch = threads.take_result()
                plaintext_bytes += (
                    batch.source_bytes if self.operation is ENCRYPT else batch.target_bytes
                )
                pool.release(batch)
                if progress:
                    progress(plaintext_bytes)

    def _transfer_batch(self, number: int, batch: ChunkBatch, *, ends: bool) -> ChunkBatch:
        """Reads, processes and writes one batch; runs in a thread of the pool."""
        start = number * self.operation.source_batch_bytes
        batch.source_bytes = min(self.operation.source_batch_bytes, self.source_size - start)
        # A read may transfer a part only, so it is repeated until nothing is left.
        unread, offset = batch.input, self.source_start + start
        while unread:
            size = os.preadv(self.source, [unread], offset)
            if not size:
                raise payload_invalid("the source became shorter while it was read")
            unread, offset = unread[size:], offset + size
        batch.process(self.cipher, number * BATCH_CHUNKS, ends=ends)
        offset = self.target_start + number * self.operation.target_batch_bytes
        write_at(self.target, batch.output, offset)
        return batch
