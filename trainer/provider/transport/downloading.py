"""Resumable download of the sealed result: ranges of one file, named by its SHA-256, verified at the end."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO, Final

import httpx

from trainer.errors import ErrorCode, SealingError, TrainerError, UnavailableError, UsageError
from trainer.provider.transport.carrier import Progress
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy

_ETAG: Final = re.compile(r'"([0-9a-f]{64})"')
_BLOCK: Final = 1 << 20


class ResultDownloader:
    """One result on its way to `target`.

    Until it is whole and checked it lies beside `target` as `.NAME.SHA256.partial`.

    Args:
        wire: to the job.
        patience: retries; counted from the last byte that arrived.
        target: where the result goes.
        progress: told the bytes that are there.
    """

    def __init__(
        self, wire: PinnedHttpClient, patience: RetryPolicy, target: Path, progress: Progress | None
    ) -> None:
        self._wire = wire
        self._patience = patience
        self._target = target
        self._progress = progress or (lambda _: None)

    def fetch(self) -> str:
        """Fetch the result; returns its SHA-256 in hex.

        Raises:
            UsageError: the place for it cannot be written.
            UnavailableError: there is no result yet, or the job cannot be reached.
            SealingError: what came is not what the job announced (`result-digest-mismatch`).
        """
        try:
            digest = self._fetch()
            return self._finish(digest)
        except OSError as error:
            raise UsageError(ErrorCode.USAGE, f"cannot write {self._target}: {error.strerror}") from error

    def _fetch(self) -> str:
        while True:
            try:
                return self._attempt()
            except TrainerError as error:
                self._patience.failed(error)

    def _attempt(self) -> str:
        """Get what is missing; returns the digest the job announced once nothing is."""
        digest, size = self._started()
        headers = {} if digest is None else {"Range": f"bytes={size}-", "If-Range": f'"{digest}"'}
        with self._wire.open("GET", "/result", headers=headers, accept=(200, 206, 416)) as answer:
            if answer.status_code == 416:
                return self._complete(answer, digest, size)
            announced = _announced(answer)
            appends = answer.status_code == 206
            if appends and (announced != digest or not _continues(answer, size)):
                raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job answered with another range")
            if not appends:
                self._forget_partials()
            with self._partial(announced).open("ab" if appends else "wb") as file:
                self._take(answer, file)
            return announced

    def _take(self, answer: httpx.Response, file: BinaryIO) -> None:
        for piece in answer.iter_raw(_BLOCK):
            file.write(piece)
            self._patience.progressed()
            self._progress(file.tell())
        file.flush()
        os.fsync(file.fileno())

    def _complete(self, answer: httpx.Response, digest: str | None, size: int) -> str:
        """Nothing is left beyond `size`: right if that is all of it."""
        if digest is None or answer.headers.get("content-range") != f"bytes */{size}":
            self._forget_partials()
            raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job has another result by now")
        return digest

    def _finish(self, digest: str) -> str:
        partial = self._partial(digest)
        found = _file_sha256(partial)
        if found != digest:
            partial.unlink()
            raise SealingError(
                ErrorCode.RESULT_DIGEST_MISMATCH,
                "the result is not what the job announced",
                expected=digest,
                found=found,
                hint="fetch it again",
            )
        partial.replace(self._target)
        return digest

    def _partial(self, digest: str) -> Path:
        return self._target.with_name(f".{self._target.name}.{digest}.partial")

    def _partials(self) -> list[Path]:
        start, end = f".{self._target.name}.", ".partial"
        return [
            path
            for path in self._target.parent.iterdir()
            if path.name.startswith(start) and path.name.endswith(end)
            and re.fullmatch("[0-9a-f]{64}", path.name[len(start) : -len(end)])
        ]  # fmt: skip

    def _started(self) -> tuple[str | None, int]:
        for path in self._partials():
            if size := path.stat().st_size:
                return path.name.split(".")[-2], size
        return None, 0

    def _forget_partials(self) -> None:
        for path in self._partials():
            path.unlink()


def _announced(answer: httpx.Response) -> str:
    match = _ETAG.fullmatch(answer.headers.get("etag", ""))
    if match is None:
        raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job announced no digest of the result")
    return match.group(1)


def _continues(answer: httpx.Response, offset: int) -> bool:
    match = re.fullmatch(
        r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})", answer.headers.get("content-range", "")
    )
    return match is not None and int(match[1]) == offset and int(match[2]) + 1 == int(match[3])


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
