"""One upload in progress: how much of it is safe on disk, and how the bytes of a request get there."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from trainer.atomic_files import write_at

PARTIAL_NAME: Final = "upload-{}.partial"
_SYNC_BYTES: Final = 64 << 20


class Upload:
    """One upload: `offset` of `length` bytes are synced to disk."""

    def __init__(self, spool: Path, length: int, now: float) -> None:
        self.id = secrets.token_hex(16)
        self.length = length
        self.offset = 0
        self.path = spool / PARTIAL_NAME.format(self.id)
        self.last_active = now
        self.lock = asyncio.Lock()
        self.request_number = 0
        self.waiting: asyncio.Timeout | None = None

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived."""
        return self.offset == self.length

    def interrupt(self) -> int:
        """Ends the request in progress, so that the newest one continues; the earlier connection is usually dead.

        Returns:
            the number of the new request. It may write as long as `request_number` is unchanged.
        """
        self.request_number += 1
        if self.waiting is not None and not self.waiting.expired():
            self.waiting.reschedule(asyncio.get_running_loop().time())
        return self.request_number


class BodyBuffer:
    """Joins pieces of a body to blocks of at least `size` bytes, unless the body ends."""

    def __init__(self, body: AsyncIterator[bytes], size: int) -> None:
        self._body = body
        self._size = size
        self.buffer = bytearray()
        self.ended = False

    async def fill(self) -> None:
        """Reads until the buffer holds a block or the body ends."""
        while len(self.buffer) < self._size:
            try:
                self.buffer += await anext(self._body)
            except StopAsyncIteration:
                self.ended = True
                return

    def take(self) -> bytes:
        """Returns the bytes of the buffer and empties it."""
        block = bytes(self.buffer)
        self.buffer.clear()
        return block


class SyncedWriter:
    """Writes blocks in a thread, and advances the upload's offset after each sync."""

    def __init__(self, descriptor: int, upload: Upload) -> None:
        self._descriptor = descriptor
        self._upload = upload
        self._written = upload.offset

    async def write(self, block: bytes) -> None:
        """Writes a block after those before it."""
        await asyncio.to_thread(write_at, self._descriptor, block, self._written)
        self._written += len(block)
        if self._written - self._upload.offset >= _SYNC_BYTES:
            await self.sync()

    async def sync(self) -> None:
        """Syncs what was written, and only then counts it."""
        if self._written > self._upload.offset:
            await asyncio.to_thread(os.fsync, self._descriptor)
            self._upload.offset = self._written
