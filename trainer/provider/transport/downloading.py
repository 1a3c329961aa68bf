"""Resumable download of the sealed result: ranges of one file, named by its SHA-256 and verified at the end."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, Final

import httpx

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, SealingError, TrainerError, UnavailableError, UsageError
from trainer.exchange.spool import Progress
from trainer.provider.transport.carrier import result_too_large
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy

_ETAG_PATTERN: Final = re.compile(r'"([0-9a-f]{64})"')
_RANGE_PATTERN: Final = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})")


class ResultDownloader:
    """The download of one result to `target`.

    Until it is complete and verified the file is beside `target` as `.NAME.SHA256.partial`. The digest in its name
    is the one that the job announced, so a later call knows what it continues.

    Args:
        http: client of the job.
        retry_policy: failures are counted from the last byte that arrived beyond all earlier ones.
        target: path of the result.
        limit: largest acceptable result in bytes.
        progress: receives the bytes that are stored.
    """

    def __init__(
        self,
        http: PinnedHttpClient,
        retry_policy: RetryPolicy,
        target: Path,
        limit: int,
        progress: Progress | None,
    ) -> None:
        self._http = http
        self._retry_policy = retry_policy
        self._target = target
        self._limit = limit
        self._highest_offset = 0
        self._progress = progress or (lambda _: None)

    def fetch(self) -> str:
        """Downloads the result and returns its SHA-256 in hex.

        Raises:
            UsageError: the target cannot be written, or the result is larger than the limit (`result-too-large`).
            UnavailableError: there is no result yet, or the job cannot be reached.
            SealingError: the file is not the one that the job announced (`result-digest-mismatch`).
        """
        try:
            while True:
                try:
                    digest = self._attempt()
                    break
                except TrainerError as error:
                    self._retry_policy.record_failure(error)
            return self._finish(digest)
        except OSError as error:
            raise UsageError(
                ErrorCode.USAGE, f"cannot write {self._target}: {error.strerror}"
            ) from error

    def _attempt(self) -> str:
        """Downloads what is missing and returns the digest that the job announced."""
        digest, size = self._find_partial()
        # RFC 9110, section 13.1.5: with If-Range the job sends the rest (206) if its result still has this ETag,
        # otherwise all (200) of another result.
        headers = {} if digest is None else {"Range": f"bytes={size}-", "If-Range": f'"{digest}"'}
        with self._http.open("GET", "/result", headers=headers, accept=(200, 206, 416)) as response:
            if response.status_code == 416:
                return self._accept_complete(response, digest, size)
            etag = _ETAG_PATTERN.fullmatch(response.headers.get("etag", ""))
            if etag is None:
                raise UnavailableError(
                    ErrorCode.JOB_UNREACHABLE, "the job announced no digest of the result"
                )
            announced = etag[1]
            total = _announced_size(response)
            if total > self._limit:
                raise result_too_large(self._limit, total)
            appends = response.status_code == 206
            # `bytes FIRST-LAST/LENGTH`, where LAST is the offset of the last byte (RFC 9110, section 14.4).
            part = _RANGE_PATTERN.fullmatch(response.headers.get("content-range", ""))
            continues = part and int(part[1]) == size and int(part[2]) + 1 == int(part[3])
            if appends and (announced != digest or not continues):
                raise UnavailableError(
                    ErrorCode.JOB_UNREACHABLE, "the job answered with another range"
                )
            if not appends:
                self._remove_partials()
            # Fails where a link would lead elsewhere.
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            flags |= 0 if appends else os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(self._partial_path(announced), flags, 0o644), "ab") as file:
                self._store(response, file, total)
            return announced

    def _store(self, response: httpx.Response, file: BinaryIO, total: int) -> None:
        """Appends the body of a response to the partial file, which has `total` bytes in the end."""
        stored = file.seek(0, os.SEEK_END)
        self._highest_offset = max(self._highest_offset, stored)
        # Pieces as they arrive: one that waited for more would be lost if the connection breaks.
        for block in response.iter_raw():
            stored += len(block)
            if stored > total:
                raise UnavailableError(
                    ErrorCode.JOB_UNREACHABLE,
                    "the job's answer",
                    expected=f"{total} bytes",
                    found="more",
                )
            file.write(block)
            # Only bytes beyond the highest offset count: another result each time must not reset the failures.
            if stored > self._highest_offset:
                self._retry_policy.record_progress(stored - self._highest_offset)
                self._highest_offset = stored
            self._progress(stored)
        # On disk before it is verified and renamed: a file that is in place after a power failure is complete.
        file.flush()
        os.fsync(file.fileno())

    def _accept_complete(self, response: httpx.Response, digest: str | None, size: int) -> str:
        """Returns the digest of a partial file that has the length of the result.

        Status 416 (RFC 9110, section 15.5.17) says that nothing exists from offset `size`; its Content-Range gives
        the length of the result.

        Raises:
            UnavailableError: the job has a result of another length.
        """
        if digest is None or response.headers.get("content-range") != f"bytes */{size}":
            self._remove_partials()
            raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job has another result by now")
        return digest

    def _finish(self, digest: str) -> str:
        partial = self._partial_path(digest)
        found = file_sha256(partial)
        if found != digest:
            partial.unlink()
            raise SealingError(
                ErrorCode.RESULT_DIGEST_MISMATCH,
                "the result is not what the job announced",
                expected=digest,
                found=found,
                hint="download it again",
            )
        partial.replace(self._target)
        return digest

    def _partial_path(self, digest: str) -> Path:
        return self._target.with_name(f".{self._target.name}.{digest}.partial")

    def _find_partial(self) -> tuple[str | None, int]:
        """Returns digest and size of the partial file to continue; None and 0 without one.

        A link, or a file with a second name, was not made by an earlier call: it is not appended to.
        """
        for path, digest in self._list_partials().items():
            state = path.lstat()
            if (
                stat.S_ISREG(state.st_mode)
                and state.st_nlink == 1
                and 0 < state.st_size <= self._limit
            ):
                return digest, state.st_size
        return None, 0

    def _list_partials(self) -> dict[Path, str]:
        """Returns the partial files beside the target, each with its digest."""
        pattern = re.compile(re.escape(f".{self._target.name}.") + r"([0-9a-f]{64})\.partial")
        matches = {path: pattern.fullmatch(path.name) for path in self._target.parent.iterdir()}
        return {path: match[1] for path, match in matches.items() if match is not None}

    def _remove_partials(self) -> None:
        for path in self._list_partials():
            path.unlink()


def _announced_size(response: httpx.Response) -> int:
    """Returns the size of the complete result, of which a response is all or a range.

    Raises:
        UnavailableError: it has no length: nothing would bound it.
    """
    name = "content-range" if response.status_code == 206 else "content-length"
    match = re.fullmatch(
        r"(?:bytes [0-9]{1,16}-[0-9]{1,16}/)?([0-9]{1,16})", response.headers.get(name, "")
    )
    if match is None:
        raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job announced no size of the result")
    return int(match[1])
