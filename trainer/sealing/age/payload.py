"""The payload of an age file: the STREAM construction over 64 KiB chunks.

Source: c2sp.org/age, "Payload"; STREAM is from Hoang, Reyhanitabar, Rogaway and Vizár, "Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance" (CRYPTO 2015). Chunk i is

    ChaCha20-Poly1305(key = payload key, nonce = i as 11 bytes big-endian ‖ last, plaintext = chunk i)

where `last` is one byte: 1 in the last chunk and 0 in all others. The counter makes a chunk that was moved,
repeated or left out fail to authenticate; the last byte does the same for a file that ends early. Every chunk but
the last has 65,536 bytes of plaintext, and the last one is empty only if the payload is, so each plaintext has one
encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from trainer.errors import ErrorCode, SealingError

CHUNK_BYTES: Final = 1 << 16
TAG_BYTES: Final = 16
BATCH_CHUNKS: Final = 16
"""Chunks that a thread handles per task: 1 MiB, against which the cost of a task is small."""


@dataclass(frozen=True)
class PayloadOperation:
    """Encryption or decryption of batches of chunks.

    Args:
        source_chunk_bytes: size of a full chunk of input.
        target_chunk_bytes: size of a full chunk of output.
        apply: function of (cipher, index of the first chunk, input, output buffer, whether the input ends the
            payload) that returns the number of bytes written.
    """

    source_chunk_bytes: int
    target_chunk_bytes: int
    apply: Callable[[ChaCha20Poly1305, int, memoryview, memoryview, bool], int]

    @property
    def source_batch_bytes(self) -> int:
        """Size of a full batch of input."""
        return self.source_chunk_bytes * BATCH_CHUNKS

    @property
    def target_batch_bytes(self) -> int:
        """Size of a full batch of output."""
        return self.target_chunk_bytes * BATCH_CHUNKS


def _chunk_nonce(index: int, *, last: bool) -> bytes:
    # 11 bytes count 2^88 chunks: no file is long enough for a nonce to repeat under one key.
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _encrypt_batch(
    cipher: ChaCha20Poly1305, first_index: int, source: memoryview, target: memoryview, ends: bool
) -> int:
    written = 0
    # max(…, 1): an empty payload still has one chunk, which is empty and marked as the last.
    for index, start in enumerate(range(0, max(len(source), 1), CHUNK_BYTES), first_index):
        chunk = source[start : start + CHUNK_BYTES]
        nonce = _chunk_nonce(index, last=ends and start + CHUNK_BYTES >= len(source))
        written += cipher.encrypt_into(
            nonce, chunk, None, target[written : written + len(chunk) + TAG_BYTES]
        )
    return written


def _decrypt_batch(
    cipher: ChaCha20Poly1305, first_index: int, source: memoryview, target: memoryview, ends: bool
) -> int:
    written = 0
    sealed_chunk_bytes = CHUNK_BYTES + TAG_BYTES
    for index, start in enumerate(range(0, max(len(source), 1), sealed_chunk_bytes), first_index):
        chunk = source[start : start + sealed_chunk_bytes]
        plaintext_bytes = len(chunk) - TAG_BYTES
        # An empty last chunk after a full one would be a second encoding of the same plaintext.
        if plaintext_bytes < 0 or (plaintext_bytes == 0 and index > 0):
            raise payload_invalid(f"it is cut short in chunk {index}")
        nonce = _chunk_nonce(index, last=ends and start + sealed_chunk_bytes >= len(source))
        try:
            written += cipher.decrypt_into(
                nonce, chunk, None, target[written : written + plaintext_bytes]
            )
        except InvalidTag:
            raise payload_invalid(f"chunk {index} does not authenticate") from None
    return written


def payload_invalid(reason: str) -> SealingError:
    """Makes the error for a payload that was changed or is incomplete."""
    return SealingError(
        ErrorCode.PAYLOAD_INVALID,
        f"age payload: {reason}",
        hint="the file was changed or cut short after it was sealed; transfer it again",
    )


ENCRYPT: Final = PayloadOperation(CHUNK_BYTES, CHUNK_BYTES + TAG_BYTES, _encrypt_batch)
DECRYPT: Final = PayloadOperation(CHUNK_BYTES + TAG_BYTES, CHUNK_BYTES, _decrypt_batch)
