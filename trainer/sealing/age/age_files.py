"""File to file: each thread reads its part of the one, works on it, and writes its part of the other.

Parts are written before the end is verified: that is why the target has a temporary name until all is well.
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

from trainer.sealing.age.armor import is_armored
from trainer.sealing.age.byte_streams import buffered_reader, write_all
from trainer.sealing.age.header import create_header, read_header
from trainer.sealing.age.identity import Identity, Recipient
from trainer.sealing.age.ordered_thread_pool import ChunkBatch, ChunkBatchPool, OrderedThreadPool
from trainer.sealing.age.payload import BATCH_CHUNKS, DECRYPT, ENCRYPT, PayloadOperation, payload_invalid
from trainer.sealing.age.stream import ProgressCallback, decrypt, encrypt
from trainer.sealing.atomic_files import PRIVATE_MODE, SHARED_MODE, replace_atomically, translate_storage_errors


def encrypt_file(
    source: Path, target: Path, recipients: Sequence[Recipient], *, progress: ProgressCallback | None = None
) -> None:
    """Encrypt a file; `target` is replaced at once when all is written, and untouched on any error.

    Args:
        source: plaintext; anything but a regular file is read as a stream.
        target: the age file.
        recipients: of one recipient type.
        progress: told of plaintext bytes done.

    Raises:
        UsageError: RECIPIENT_INVALID, FILE_NOT_FOUND.
        UnavailableError: STORAGE_FULL.
        SealingError: PAYLOAD_INVALID: the source became shorter meanwhile.
    """
    with (
        translate_storage_errors(),
        source.open("rb", buffering=0) as plain,
        replace_atomically(target, SHARED_MODE) as sealed,
    ):
        if not _is_regular(plain):
            encrypt(plain, sealed, recipients, progress=progress)
            return
        prefix, key = create_header(recipients)
        write_all(sealed, prefix)
        size = os.fstat(plain.fileno()).st_size
        _Transfer(ENCRYPT, key, plain.fileno(), 0, size, sealed.fileno(), len(prefix)).run(progress)


def decrypt_file(
    source: Path, target: Path, identities: Sequence[Identity], *, progress: ProgressCallback | None = None
) -> None:
    """Decrypt a file; `target` (mode 0600) appears when all of it is authenticated, and not at all on any error.

    Args:
        source: an age file, armored or not; anything but a regular file is read as a stream.
        target: the plaintext.
        identities: tried in turn.
        progress: told of plaintext bytes done.

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
        stream = buffered_reader(sealed)
        if not _is_regular(sealed) or is_armored(stream.peek()):
            decrypt(cast("BinaryIO", stream), plain, identities, progress=progress)
            return
        opening = read_header(cast("BinaryIO", stream), identities)
        size = os.fstat(sealed.fileno()).st_size - opening.size
        _Transfer(DECRYPT, opening.key, sealed.fileno(), opening.size, size, plain.fileno(), 0).run(progress)


def _is_regular(file: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


@dataclass(frozen=True)
class _Transfer:
    """One payload from descriptor to descriptor.

    Args:
        direction: sealing or opening.
        key: the payload's cipher.
        source: descriptor to read from.
        source_start: where its chunks begin.
        source_size: bytes of all its chunks.
        target: descriptor to write to.
        target_start: where its chunks begin.
    """

    direction: PayloadOperation
    key: ChaCha20Poly1305
    source: int
    source_start: int
    source_size: int
    target: int
    target_start: int

    def run(self, progress: ProgressCallback | None) -> None:
        """Transfer all batches; raises what the first of the failing ones raised."""
        buffers, done = ChunkBatchPool(self.direction), 0
        batches = max(1, -(-self.source_size // self.direction.source_batch))
        with OrderedThreadPool[ChunkBatch]() as threads:
            submitted = 0
            while submitted < batches or not threads.empty:
                if submitted < batches and not threads.full:
                    last = submitted == batches - 1
                    threads.submit(partial(self._work, submitted, buffers.get(), last=last))
                    submitted += 1
                    continue
                batch = threads.take()
                done += batch.filled if self.direction is ENCRYPT else batch.done
                buffers.give_back(batch)
                if progress:
                    progress(done)

    def _work(self, number: int, batch: ChunkBatch, *, last: bool) -> ChunkBatch:
        start = number * self.direction.source_batch
        batch.filled = min(self.direction.source_batch, self.source_size - start)
        wanted = batch.source[: batch.filled]
        _read_exactly(self.source, wanted, self.source_start + start)
        batch.done = self.direction.apply(self.key, number * BATCH_CHUNKS, wanted, batch.target, last)
        _write_exactly(self.target, batch.output, self.target_start + number * self.direction.target_batch)
        return batch


def _read_exactly(descriptor: int, room: memoryview, offset: int) -> None:
    while room:
        size = os.preadv(descriptor, [room], offset)
        if not size:
            raise payload_invalid("the source became shorter while it was read")
        room, offset = room[size:], offset + size


def _write_exactly(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        size = os.pwrite(descriptor, data, offset)
        data, offset = data[size:], offset + size
