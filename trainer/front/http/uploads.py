"""One resumable upload at a time, into the spool: the storage under the tus routes.

An offset is told only after the bytes before it were synced. Ciphertext lies under a temporary name and becomes
`dataset.age` by a rename when it is whole.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.spool import DATASET_NAME
from trainer.front.http.answers import Refusal

_PARTIAL: Final = "upload-{}.partial"
_SYNC_BYTES: Final = 64 << 20


class Upload:
    """One upload: `offset` of `length` bytes are safe."""

    def __init__(self, spool: Path, length: int, now: float) -> None:
        self.id = secrets.token_hex(16)
        self.length = length
        self.offset = 0
        self.path = spool / _PARTIAL.format(self.id)
        self.last_active = now
        self.lock = asyncio.Lock()
        self.turn = 0
        self.waiting: asyncio.Timeout | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.offset == self.length

    def interrupt(self) -> int:
        """End a request that is under way, so that the newest one wins; the earlier connection is mostly dead.

        Returns:
            The turn of the caller: it may go on while `turn` stays the same.
        """
        self.turn += 1
        if self.waiting is not None and not self.waiting.expired():
            self.waiting.reschedule(asyncio.get_running_loop().time())
        return self.turn


class UploadStore:
    """The spool's side of `/dataset`.

    Args:
        spool: directory for ciphertext; leftovers of unfinished uploads are removed.
        max_bytes: largest dataset accepted.
        limits: block size and times.
        on_complete: told the size once `dataset.age` is whole.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        spool: Path,
        max_bytes: int,
        limits: Limits,
        on_complete: Callable[[int], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._limits = limits
        self._on_complete = on_complete
        self._clock = clock
        self._accepting = False
        self._current: Upload | None = None
        self.max_bytes = max_bytes
        for leftover in spool.glob(_PARTIAL.format("*")):
            leftover.unlink()

    def open(self, accept: bool) -> None:
        """Accept uploads from now on, or no more. An earlier upload is forgotten either way."""
        self._accepting = accept
        if accept or (self._current is not None and not self._current.complete):
            self._drop()

    def create(self, length: int) -> Upload:
        """Begin an upload of `length` bytes.

        Raises:
            Refusal: 409 `wrong-phase` or `job-busy`, 413 `dataset-too-large`, 507 `storage-full`.
        """
        if not self._accepting:
            raise Refusal(409, ErrorCode.WRONG_PHASE)
        if length > self.max_bytes:
            raise Refusal(413, ErrorCode.DATASET_TOO_LARGE, {"Tus-Max-Size": str(self.max_bytes)})
        if self._current is not None and self.expires_in(self._current) > 0:
            raise Refusal(409, ErrorCode.JOB_BUSY)
        self._drop()
        if shutil.disk_usage(self._spool).free < length:
            raise Refusal(507, ErrorCode.STORAGE_FULL)
        upload = Upload(self._spool, length, self._clock())
        os.close(os.open(upload.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._current = upload
        return upload

    def find(self, upload_id: str) -> Upload:
        """The upload with this id.

        Raises:
            Refusal: 404 `not-found`.
        """
        if self._current is None or self._current.id != upload_id:
            raise Refusal(404, ErrorCode.NOT_FOUND)
        return self._current

    def expires_in(self, upload: Upload) -> float:
        """Seconds until another upload may take this one's place; never while a request is adding to it."""
        if upload.lock.locked():
            return self._limits.upload_idle_seconds
        idle = self._limits.upload_idle_seconds if upload.offset else self._limits.empty_upload_seconds
        return max(0.0, upload.last_active + idle - self._clock())

    async def settled_offset(self, upload: Upload) -> int:
        """The offset to go on from, after ending a request that may still be under way."""
        upload.interrupt()
        async with upload.lock:
            upload.last_active = self._clock()
            return upload.offset

    async def append(self, upload: Upload, offset: int, body: AsyncIterator[bytes]) -> None:
        """Add `body` at `offset`. What arrived before a failure is kept.

        Raises:
            Refusal: 409 `upload-conflict` (another offset, or a newer request took over), 409 `wrong-phase`
                (the upload is gone), 413 `dataset-too-large` (more than announced), 408 `timeout` (too slow),
                507 `storage-full`.
        """
        turn = upload.interrupt()
        async with upload.lock:
            if self._current is not upload:
                raise Refusal(409, ErrorCode.WRONG_PHASE)
            if upload.complete or offset != upload.offset or turn != upload.turn:
                raise Refusal(409, ErrorCode.UPLOAD_CONFLICT)
            await self._receive(upload, turn, body)
            if upload.complete and self._current is upload:
                await self._finish(upload)

    async def terminate(self, upload: Upload) -> None:
        """Forget an unfinished upload.

        Raises:
            Refusal: 409 `wrong-phase`: it is complete already.
        """
        upload.interrupt()
        async with upload.lock:
            if upload.complete:
                raise Refusal(409, ErrorCode.WRONG_PHASE)
            if self._current is upload:
                self._drop()

    async def _receive(self, upload: Upload, turn: int, body: AsyncIterator[bytes]) -> None:
        descriptor = os.open(upload.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        writer = _Writer(descriptor, upload)
        try:
            await self._store(upload, turn, body, writer)
        except OSError as error:
            raise Refusal(507, ErrorCode.STORAGE_FULL) from error
        finally:
            os.close(descriptor)

    async def _store(self, upload: Upload, turn: int, body: AsyncIterator[bytes], writer: _Writer) -> None:
        try:
            async with aclosing(self._blocks(upload, turn, body)) as blocks:
                async for block in blocks:
                    await writer.write(block)
                    upload.last_active = self._clock()
        finally:
            # On a lost connection too: what arrived is kept, the client goes on from there.
            await writer.sync()

    async def _blocks(self, upload: Upload, turn: int, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Join small pieces to blocks; each must come in time, and the last piece before a failure is kept."""
        room = upload.length - upload.offset
        gathered = _Gathered(body, self._limits.block_bytes)
        failure: BaseException | None = None
        while failure is None and not gathered.ended:
            failure = await self._gather(upload, turn, gathered)
            room -= len(gathered.buffer)
            if room < 0:
                raise Refusal(413, ErrorCode.DATASET_TOO_LARGE)
            if gathered.buffer:
                yield gathered.take()
        if failure is not None:
            raise failure

    async def _gather(self, upload: Upload, turn: int, gathered: _Gathered) -> BaseException | None:
        try:
            async with asyncio.timeout(self._limits.block_seconds) as upload.waiting:
                await gathered.fill()
        except TimeoutError:
            if turn != upload.turn:
                return Refusal(409, ErrorCode.UPLOAD_CONFLICT)
            return Refusal(408, ErrorCode.TIMEOUT)
        except Exception as error:  # noqa: BLE001 -- a lost connection; raised again after the bytes are safe
            return error
        finally:
            upload.waiting = None
        return Refusal(409, ErrorCode.UPLOAD_CONFLICT) if turn != upload.turn else None

    async def _finish(self, upload: Upload) -> None:
        target = self._spool / DATASET_NAME
        await asyncio.to_thread(_rename_durably, upload.path, target)
        self._accepting = False
        await self._on_complete(upload.length)

    def _drop(self) -> None:
        if self._current is not None:
            self._current.interrupt()
            self._current.path.unlink(missing_ok=True)
            self._current = None


class _Gathered:
    """Pieces of a body, joined to blocks of at least `size` bytes."""

    def __init__(self, body: AsyncIterator[bytes], size: int) -> None:
        self._body = body
        self._size = size
        self.buffer = bytearray()
        self.ended = False

    async def fill(self) -> None:
        """Read until the buffer holds a block or the body ends."""
        while len(self.buffer) < self._size:
            try:
                self.buffer += await anext(self._body)
            except StopAsyncIteration:
                self.ended = True
                return

    def take(self) -> bytes:
        """The buffer, emptied."""
        block = bytes(self.buffer)
        self.buffer.clear()
        return block


class _Writer:
    """Writes blocks off the loop's thread and moves the upload's offset when they are synced."""

    def __init__(self, descriptor: int, upload: Upload) -> None:
        self._descriptor = descriptor
        self._upload = upload
        self._written = upload.offset

    async def write(self, block: bytes) -> None:
        await asyncio.to_thread(_write_all, self._descriptor, block, self._written)
        self._written += len(block)
        if self._written - self._upload.offset >= _SYNC_BYTES:
            await self.sync()

    async def sync(self) -> None:
        if self._written > self._upload.offset:
            await asyncio.to_thread(os.fsync, self._descriptor)
            self._upload.offset = self._written


def _write_all(descriptor: int, block: bytes, offset: int) -> None:
    rest = memoryview(block)
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def _rename_durably(source: Path, target: Path) -> None:
    source.replace(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
