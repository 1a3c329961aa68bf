"""Resumable upload of the sealed dataset: the client of the tus protocol 1.0 (core and creation).

POST  /dataset           creates an upload of a given length; the job answers with its location
HEAD  {location}         asks for the offset that the job has stored
PATCH {location}         appends a segment at that offset
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Self

import httpx
from pydantic import Field, ValidationError

from trainer.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError, UsageError
from trainer.exchange.spool import Progress
from trainer.models import One, Sha256Hex, Strict
from trainer.provider.transport.carrier import Authorize
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy

_TUS_HEADERS: Final = {"Tus-Resumable": "1.0.0"}
_LOCATION_PATTERN: Final = re.compile(r"/dataset/[0-9a-f]{32}")
_DIGEST_BYTES: Final = 1 << 20
_MAX_STATE_BYTES: Final = 64 << 10
_BLOCK_BYTES: Final = 1 << 18
_SEGMENT_BYTES: Final = (1 << 20, 64 << 20)
"""Least and greatest length of one PATCH. The job flushes it to disk before it confirms it."""
_SEGMENT_SECONDS: Final = (1.0, 4.0)
"""A segment that took less is followed by one of twice the length, one that took more by one of half."""


class UploadState(Strict):
    """What a restarted client needs to continue an upload, and to notice another file or another job.

    `ends_sha256` covers the first and the last MiB. Sealed files begin with a random file key and nonce, so two of
    them never share it.
    """

    version: One = 1
    url: str
    peer_spki_sha256: Sha256Hex
    location: Annotated[str, Field(pattern=r"^/dataset/[0-9a-f]{32}$")]
    size: Annotated[int, Field(ge=1)]
    ends_sha256: Sha256Hex

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Returns the saved state; None if there is none or it cannot be read."""
        try:
            with path.open("rb") as file:
                return cls.model_validate_json(file.read(_MAX_STATE_BYTES))
        except (OSError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        """Saves the state atomically, readable for this user only."""
        with replace_atomically(path, PRIVATE_MODE) as file:
            file.write(self.model_dump_json().encode())


class DatasetUploader:
    """The upload of one file.

    Args:
        http: client of the job, with a known TLS key.
        retry_policy: failures are counted from the last byte that arrived.
        progress: receives the bytes that the job has confirmed.
        state: file for `UploadState`; removed when the upload is complete.
        authorize: signs the authorisation of an upload; None shows none.
    """

    def __init__(
        self,
        http: PinnedHttpClient,
        retry_policy: RetryPolicy,
        progress: Progress | None,
        state: Path | None,
        authorize: Authorize | None = None,
    ) -> None:
        self._http = http
        self._retry_policy = retry_policy
        self._progress = progress or (lambda _: None)
        self._state = state
        self._authorize = authorize
        self._location: str | None = None
        self._highest_offset: int | None = None
        self._segment_bytes = _SEGMENT_BYTES[0]

    def send(self, path: Path) -> None:
        """Sends the file to its end.

        Raises:
            UsageError: the file cannot be read, is empty, or changed in the meantime.
            JobError: the file is larger than the job accepts.
            UnavailableError: the job takes no dataset now, is busy with another, or cannot be reached.
            VerificationError: another TLS key answers.
        """
        try:
            with path.open("rb") as file:
                self._send(file, path)
        except OSError as error:
            raise UsageError(
                ErrorCode.FILE_NOT_FOUND, f"cannot read {path}: {error.strerror}"
            ) from error
        if self._state is not None:
            self._state.unlink(missing_ok=True)

    def _send(self, file: BinaryIO, path: Path) -> None:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise UsageError(ErrorCode.USAGE, f"{path} is empty")
        file.seek(0)
        digest = hashlib.sha256(file.read(_DIGEST_BYTES))
        file.seek(max(0, size - _DIGEST_BYTES))
        digest.update(file.read(_DIGEST_BYTES))
        ends = digest.hexdigest()
        saved = UploadState.read(self._state) if self._state is not None else None
        # A saved location counts only for the same job, TLS key and file: elsewhere the stored part would not fit.
        if saved is not None and saved == self._make_state(saved.location, size, ends):
            self._location = saved.location
        offset = 0
        while offset < size:
            try:
                offset = self._attempt(file, size, ends)
            except TrainerError as error:
                if error.code is ErrorCode.NOT_FOUND and self._location is not None:
                    # The job dropped this upload (it restarted, or the upload was idle for too long): create a new
                    # one. It counts as a failure, so that a job that drops every upload is not tried for ever.
                    self._location = None
                    error = UnavailableError(
                        ErrorCode.UPLOAD_CONFLICT, "the job no longer knows the upload"
                    )
                self._retry_policy.record_failure(error)

    def _attempt(self, file: BinaryIO, size: int, ends: str) -> int:
        """Asks for the stored offset and sends the rest, segment by segment; returns the offset reached."""
        location = self._location = self._location or self._create_upload(size, ends)
        # A HEAD at the start of each attempt: only the job knows how much it stored before a connection broke.
        offset = _parse_offset(self._http.fetch("HEAD", location, headers=_TUS_HEADERS)[0], size)
        self._record_offset(offset)
        while offset < size:
            offset = self._send_segment(file, location, offset, size)
            self._record_offset(offset)
        return offset

    def _record_offset(self, offset: int) -> None:
        # Only bytes beyond the highest offset count as progress: repeating a segment must not reset the failures.
        highest = offset - 1 if self._highest_offset is None else self._highest_offset
        if offset > highest:
            self._retry_policy.record_progress(offset - highest)
            self._highest_offset = offset
        self._progress(offset)

    def _create_upload(self, size: int, ends: str) -> str:
        asked = {**_TUS_HEADERS, "Upload-Length": str(size)}
        if self._authorize is not None:
            asked["Authorization"] = f"Bearer {self._authorize(size, self._http.pin)}"
        try:
            headers, _ = self._http.fetch("POST", "/dataset", headers=asked, accept=(201,))
        except JobError as error:
            if error.code is ErrorCode.DATASET_TOO_LARGE:
                error.found = f"{size} bytes"
            raise
        location = str(headers.get("location", ""))
        if not _LOCATION_PATTERN.fullmatch(location):
            raise UnavailableError(
                ErrorCode.JOB_UNREACHABLE, "the job gave no location for the upload"
            )
        if self._state is not None:
            self._make_state(location, size, ends).write(self._state)
        return location

    def _send_segment(self, file: BinaryIO, location: str, offset: int, size: int) -> int:
        # tus 1.0, PATCH: the offset must be the stored one, otherwise the job answers 409 and nothing is appended.
        started, end = time.monotonic(), min(size, offset + self._segment_bytes)
        headers = {
            **_TUS_HEADERS,
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(end - offset),
        }
        body = self._read_blocks(file, offset, end)
        with self._http.open(
            "PATCH", location, headers=headers, content=body, accept=(204,)
        ) as response:
            confirmed = _parse_offset(response.headers, size)
        # So that even a slow link soon has something confirmed.
        seconds, (fast, slow) = time.monotonic() - started, _SEGMENT_SECONDS
        if seconds < fast:
            self._segment_bytes = min(_SEGMENT_BYTES[1], 2 * self._segment_bytes)
        elif seconds > slow:
            self._segment_bytes = max(_SEGMENT_BYTES[0], self._segment_bytes // 2)
        return confirmed

    def _read_blocks(self, file: BinaryIO, offset: int, end: int) -> Iterator[bytes]:
        file.seek(offset)
        while offset < end:
            block = file.read(min(_BLOCK_BYTES, end - offset))
            if not block:
                raise UsageError(ErrorCode.USAGE, "the file became shorter while it was sent")
            yield block
            offset += len(block)

    def _make_state(self, location: str, size: int, ends: str) -> UploadState:
        pin = self._http.pin or ""
        return UploadState(
            url=self._http.url, peer_spki_sha256=pin, location=location, size=size, ends_sha256=ends
        )


def _parse_offset(headers: httpx.Headers, size: int) -> int:
    text = headers.get("upload-offset", "")
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > size:
        raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job gave no offset for the upload")
    return int(text)
