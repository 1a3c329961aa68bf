"""Resumable upload of one file to a job: the client's side of tus 1.0 (core, creation)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal, Self

import httpx
from pydantic import Field, ValidationError

from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError, UsageError
from trainer.models import Sha256Hex, Strict
from trainer.provider.transport.carrier import Progress
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy

_TUS: Final = {"Tus-Resumable": "1.0.0"}
_LOCATION: Final = re.compile(r"/dataset/[0-9a-f]{32}")
_ENDS_BYTES: Final = 1 << 20
_BLOCK: Final = 1 << 18
_SEGMENT: Final = 64 << 20
"""Bytes of one PATCH: what it carried is synced at the other end before the next begins."""


class UploadState(Strict):
    """What a restarted client needs to go on, and to notice that the file or the job is another one.

    `ends_sha256` is over the first and the last MiB: sealed files begin with a random file key and nonce, so two
    sealings never share it.
    """

    version: Literal[1] = 1
    url: str
    peer_spki_sha256: Sha256Hex
    location: Annotated[str, Field(pattern=r"^/dataset/[0-9a-f]{32}$")]
    size: Annotated[int, Field(ge=1)]
    ends_sha256: Sha256Hex

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The saved state; None where there is none that can be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        """Save, atomically and for this user only."""
        partial = path.with_name(path.name + ".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.model_dump_json().encode())
        partial.replace(path)


class DatasetUploader:
    """One file on its way.

    Args:
        wire: to the job; its key must be known.
        patience: retries; counted from the last byte that arrived.
        progress: told the bytes sent.
        state: file for `UploadState`; removed when the upload is whole.
    """

    def __init__(
        self, wire: PinnedHttpClient, patience: RetryPolicy, progress: Progress | None, state: Path | None
    ) -> None:
        self._wire = wire
        self._patience = patience
        self._progress = progress or (lambda _: None)
        self._state = state
        self._location: str | None = None
        self._reached = -1

    def send(self, path: Path) -> None:
        """Send the file, whole.

        Raises:
            UsageError: it cannot be read, is empty, or changed meanwhile.
            JobError: it is too large for the job.
            UnavailableError: the job takes no dataset now, is busy with another, or cannot be reached.
            VerificationError: another TLS key answers.
        """
        try:
            with path.open("rb") as file:
                self._send(file, path)
        except OSError as error:
            raise UsageError(ErrorCode.FILE_NOT_FOUND, f"cannot read {path}: {error.strerror}") from error
        if self._state is not None:
            self._state.unlink(missing_ok=True)

    def _send(self, file: BinaryIO, path: Path) -> None:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise UsageError(ErrorCode.USAGE, f"{path} is empty")
        ends = _ends_sha256(file, size)
        self._location = self._saved_location(size, ends)
        offset = 0
        while offset < size:
            try:
                offset = self._step(file, size, ends)
            except TrainerError as error:
                self._again(error)

    def _step(self, file: BinaryIO, size: int, ends: str) -> int:
        """Ask where to go on and send from there to the end, segment by segment; returns the offset reached."""
        if self._location is None:
            self._location = self._create(size, ends)
        offset = self._offset(self._wire.fetch("HEAD", self._location, headers=_TUS)[0], size)
        self._note(offset)
        while offset < size:
            offset = self._patch(file, offset, size)
            self._note(offset)
        return offset

    def _again(self, error: TrainerError) -> None:
        if error.code is ErrorCode.NOT_FOUND and self._location is not None:
            # The job dropped this upload (restarted, or idle for too long): begin anew, within the same patience.
            self._location = None
            error = UnavailableError(ErrorCode.UPLOAD_CONFLICT, "the job no longer knows the upload")
        self._patience.failed(error)

    def _note(self, offset: int) -> None:
        if offset > self._reached:
            self._reached = offset
            self._patience.progressed()
        self._progress(offset)

    def _create(self, size: int, ends: str) -> str:
        try:
            headers, _ = self._wire.fetch(
                "POST", "/dataset", headers={**_TUS, "Upload-Length": str(size)}, accept=(201,)
            )
        except JobError as error:
            if error.code is ErrorCode.DATASET_TOO_LARGE:
                error.found = f"{size} bytes"
            raise
        location = str(headers.get("location", ""))
        if not _LOCATION.fullmatch(location):
            raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job gave no place for the upload")
        self._save(location, size, ends)
        return location

    def _patch(self, file: BinaryIO, offset: int, size: int) -> int:
        assert self._location is not None  # noqa: S101 -- set by _step
        end = min(size, offset + _SEGMENT)
        headers = {
            **_TUS,
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(end - offset),
        }
        body = self._body(file, offset, end)
        with self._wire.open("PATCH", self._location, headers=headers, content=body, accept=(204,)) as answer:
            return self._offset(answer.headers, size)

    def _body(self, file: BinaryIO, offset: int, end: int) -> Iterator[bytes]:
        file.seek(offset)
        while offset < end:
            block = file.read(min(_BLOCK, end - offset))
            if not block:
                raise UsageError(ErrorCode.USAGE, "the file became shorter while it was sent")
            yield block
            offset += len(block)
            self._progress(offset)

    def _offset(self, headers: httpx.Headers, size: int) -> int:
        text = headers.get("upload-offset", "")
        if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > size:
            raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job gave no offset for the upload")
        return int(text)

    def _saved_location(self, size: int, ends: str) -> str | None:
        saved = UploadState.read(self._state) if self._state is not None else None
        if saved is None or saved != self._as_state(saved.location, size, ends):
            return None
        return saved.location

    def _save(self, location: str, size: int, ends: str) -> None:
        if self._state is not None:
            self._as_state(location, size, ends).write(self._state)

    def _as_state(self, location: str, size: int, ends: str) -> UploadState:
        pin = self._wire.pin or ""
        return UploadState(
            url=self._wire.url, peer_spki_sha256=pin, location=location, size=size, ends_sha256=ends
        )


def _ends_sha256(file: BinaryIO, size: int) -> str:
    file.seek(0)
    digest = hashlib.sha256(file.read(_ENDS_BYTES))
    file.seek(max(0, size - _ENDS_BYTES))
    digest.update(file.read(_ENDS_BYTES))
    return digest.hexdigest()
