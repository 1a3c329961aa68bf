"""Storage of the tus routes: one resumable upload at a time, into the spool.

The store reports an offset only after `fsync` of the bytes before it. Ciphertext has a temporary name until it is
complete; a rename then makes it `dataset.age`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.spool import DATASET_NAME, SpoolDirectory
from trainer.front.http.answers import RequestRefused
from trainer.front.http.partial_upload import PARTIAL_NAME, BodyBuffer, SyncedWriter, Upload


class UploadStore:
    """Stores the one current upload in the spool.

    Args:
        spool: directory for ciphertext; the store removes the files of unfinished uploads from it.
        max_bytes: largest sealed dataset that is accepted.
        limits: block size (bytes) and time limits (seconds).
        on_complete: called with the size in bytes once `dataset.age` is complete.
        clock: returns monotonic seconds.
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
        for leftover in spool.glob(PARTIAL_NAME.format("*")):
            SpoolDirectory(spool).clear(leftover.name)

    def open(self, accept: bool) -> None:
        """Sets whether uploads are accepted. Drops an earlier upload, except a complete one when uploads end."""
        self._accepting = accept
        if accept or (self._current is not None and not self._current.complete):
            self._drop_current()

    def require_accepting(self) -> None:
        """Requires that uploads are accepted.

        Raises:
            RequestRefused: 409 `wrong-phase`.
        """
        if not self._accepting:
            raise RequestRefused(409, ErrorCode.WRONG_PHASE)

    def create(self, length: int) -> Upload:
        """Begins an upload of `length` bytes.

        Raises:
            RequestRefused: 409 `wrong-phase` or `job-busy`, 413 `dataset-too-large`, 507 `storage-full`.
        """
        self.require_accepting()
        if length > self.max_bytes:
            raise RequestRefused(
                413, ErrorCode.DATASET_TOO_LARGE, {"Tus-Max-Size": str(self.max_bytes)}
            )
        if self._current is not None and self.expires_in(self._current) > 0:
            raise RequestRefused(409, ErrorCode.JOB_BUSY)
        # Before the space is measured: that of an expired upload counts as free.
        self._drop_current()
        if free_bytes(self._spool) < length:
            raise RequestRefused(507, ErrorCode.STORAGE_FULL)
        upload = Upload(self._spool, length, self._clock())
        # O_EXCL: nobody can have put a link with this random name into the spool.
        os.close(os.open(upload.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._current = upload
        return upload

    def find(self, upload_id: str) -> Upload:
        """Returns the upload with this id.

        Raises:
            RequestRefused: 404 `not-found`.
        """
        if self._current is None or self._current.id != upload_id:
            raise RequestRefused(404, ErrorCode.NOT_FOUND)
        return self._current

    def expires_in(self, upload: Upload) -> float:
        """Returns the seconds until another upload may replace this one; not 0 while a request is writing to it.

        An upload without any byte expires sooner, so that a client cannot block the only slot for long at no cost.
        """
        if upload.lock.locked():
            return self._limits.upload_idle_seconds
        idle = (
            self._limits.upload_idle_seconds if upload.offset else self._limits.empty_upload_seconds
        )
        return max(0.0, upload.last_active + idle - self._clock())

    async def stop_and_get_offset(self, upload: Upload) -> int:
        """Returns the offset to continue at; ends a request in progress and waits for its last sync."""
        upload.interrupt()
        async with upload.lock:
            upload.last_active = self._clock()
            return upload.offset

    async def append(self, upload: Upload, offset: int, body: AsyncIterator[bytes]) -> None:
        """Writes `body` at `offset`. Bytes that arrived before a failure stay in the upload.

        Raises:
            RequestRefused: 409 `upload-conflict` (another offset, or a newer request took over), 409 `wrong-phase`
                (the upload is gone), 413 `dataset-too-large` (more than announced), 408 `timeout` (too slow),
                507 `storage-full`.
        """
        request_number = upload.interrupt()
        async with upload.lock:
            # All three are checked under the lock: while this request waited, another may have changed them.
            if self._current is not upload:
                raise RequestRefused(409, ErrorCode.WRONG_PHASE)
            if (
                upload.complete
                or offset != upload.offset
                or request_number != upload.request_number
            ):
                raise RequestRefused(409, ErrorCode.UPLOAD_CONFLICT)
            await self._receive_body(upload, request_number, body)
            if upload.complete and self._current is upload:
                # The rename is atomic and precedes the message: the supervisor never sees a partial `dataset.age`.
                await asyncio.to_thread(_place_durably, upload.path, self._spool)
                self._accepting = False
                await self._on_complete(upload.length)

    async def terminate(self, upload: Upload) -> None:
        """Discards an unfinished upload.

        Raises:
            RequestRefused: 409 `wrong-phase`: it is complete already.
        """
        upload.interrupt()
        async with upload.lock:
            if upload.complete:
                raise RequestRefused(409, ErrorCode.WRONG_PHASE)
            if self._current is upload:
                self._drop_current()

    async def _receive_body(
        self, upload: Upload, request_number: int, body: AsyncIterator[bytes]
    ) -> None:
        # No link: whoever else writes to the spool must not choose the file that the client's bytes go to.
        descriptor = os.open(upload.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        writer = SyncedWriter(descriptor, upload)
        try:
            await self._write_blocks(upload, request_number, body, writer)
        except OSError as error:
            raise RequestRefused(507, ErrorCode.STORAGE_FULL) from error
        finally:
            os.close(descriptor)

    async def _write_blocks(
        self, upload: Upload, request_number: int, body: AsyncIterator[bytes], writer: SyncedWriter
    ) -> None:
        try:
            async with aclosing(self._blocks(upload, request_number, body)) as blocks:
                async for block in blocks:
                    await writer.write(block)
                    upload.last_active = self._clock()
        finally:
            # Also after a lost connection: the client resumes after the last synced byte.
            await writer.sync()

    async def _blocks(
        self, upload: Upload, request_number: int, body: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes]:
        """Yields the body in blocks; each has to arrive in time. The last piece comes before a failure."""
        room = upload.length - upload.offset
        gathered = BodyBuffer(body, self._limits.block_bytes)
        failure: BaseException | None = None
        while failure is None and not gathered.ended:
            failure = await self._fill_in_time(upload, request_number, gathered)
            room -= len(gathered.buffer)
            if room < 0:
                raise RequestRefused(413, ErrorCode.DATASET_TOO_LARGE)
            if gathered.buffer:
                yield gathered.take()
        if failure is not None:
            raise failure

    async def _fill_in_time(
        self, upload: Upload, request_number: int, gathered: BodyBuffer
    ) -> BaseException | None:
        try:
            async with asyncio.timeout(self._limits.block_seconds) as upload.waiting:
                await gathered.fill()
        except TimeoutError:
            if request_number != upload.request_number:
                return RequestRefused(409, ErrorCode.UPLOAD_CONFLICT)
            return RequestRefused(408, ErrorCode.TIMEOUT)
        except Exception as error:  # noqa: BLE001 -- a lost connection; raised again after the bytes are synced
            return error
        finally:
            upload.waiting = None
        return (
            RequestRefused(409, ErrorCode.UPLOAD_CONFLICT)
            if request_number != upload.request_number
            else None
        )

    def _drop_current(self) -> None:
        if self._current is not None:
            self._current.interrupt()
            self._current.path.unlink(missing_ok=True)
            self._current = None


def _place_durably(source: Path, spool: Path) -> None:
    SpoolDirectory(spool).move_directory_aside(DATASET_NAME)
    source.replace(spool / DATASET_NAME)
    # A rename is durable only once its directory is synced too.
    directory = os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def free_bytes(folder: Path) -> int:
    """Returns the space that the file system of `folder` has for users other than root, in bytes."""
    # By a descriptor: the sandbox refuses the question for a file system of which the front may open nothing.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)
    return status.f_bavail * status.f_frsize
