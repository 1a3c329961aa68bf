"""The payload: 64 KiB chunks, each authenticated, the last one marked.

Source: C2SP `age.md`, "Payload" (the STREAM construction). A chunk's nonce is its index in 11 bytes, big-endian,
and one byte that is 1 in the last chunk only: no chunk can be dropped, repeated, moved, or the file cut short.
The last chunk is empty only if the whole payload is.
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
"""Chunks handled by one thread at a time: 1 MiB, enough to hide the cost of handing it over."""


@dataclass(frozen=True)
class PayloadOperation:
    """Sealing or opening: sizes of full chunks, and what turns a batch of the one into a batch of the other.

    Args:
        source_chunk: bytes of a full chunk going in.
        target_chunk: bytes of a full chunk coming out.
        apply: `(key, index of the first chunk, source, target, whether the file ends here)` → bytes of target.
    """

    source_chunk: int
    target_chunk: int
    apply: Callable[[ChaCha20Poly1305, int, memoryview, memoryview, bool], int]

    @property
    def source_batch(self) -> int:
        """Bytes of a full batch going in."""
        return self.source_chunk * BATCH_CHUNKS

    @property
    def target_batch(self) -> int:
        """Bytes of a full batch coming out."""
        return self.target_chunk * BATCH_CHUNKS


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _seal_batch(key: ChaCha20Poly1305, first: int, source: memoryview, target: memoryview, ends: bool) -> int:
    written = 0
    for index, start in enumerate(range(0, max(len(source), 1), CHUNK_BYTES), first):
        chunk = source[start : start + CHUNK_BYTES]
        nonce = _nonce(index, last=ends and start + CHUNK_BYTES >= len(source))
        written += key.encrypt_into(nonce, chunk, None, target[written : written + len(chunk) + TAG_BYTES])
    return written


def _open_batch(key: ChaCha20Poly1305, first: int, source: memoryview, target: memoryview, ends: bool) -> int:
    written = 0
    full = CHUNK_BYTES + TAG_BYTES
    for index, start in enumerate(range(0, max(len(source), 1), full), first):
        chunk = source[start : start + full]
        size = len(chunk) - TAG_BYTES
        if size < 0 or (size == 0 and index > 0):
            raise payload_invalid(f"it is cut short in chunk {index}")
        nonce = _nonce(index, last=ends and start + full >= len(source))
        try:
            written += key.decrypt_into(nonce, chunk, None, target[written : written + size])
        except InvalidTag:
            raise payload_invalid(f"chunk {index} does not authenticate") from None
    return written


def payload_invalid(what: str) -> SealingError:
    """The error of a payload that is not, whole, what its writer wrote."""
    return SealingError(
        ErrorCode.PAYLOAD_INVALID,
        f"age payload: {what}",
        hint="the file was changed or cut short after it was sealed; transfer it again",
    )


ENCRYPT: Final = PayloadOperation(CHUNK_BYTES, CHUNK_BYTES + TAG_BYTES, _seal_batch)
DECRYPT: Final = PayloadOperation(CHUNK_BYTES + TAG_BYTES, CHUNK_BYTES, _open_batch)
