"""The exchange by files in one directory, and the provider's side of it.

The directory may lie on storage that nobody trusts. Every file appears by a rename, so it is whole when it is
there: `nonce` → `evidence.json`, `dataset.age`, `status.json`, `events.jsonl`, `result.tar.age` + `result.json`,
`ack`; `exchange.json` says how large a dataset may be.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, TypeVar

from pydantic import Field, ValidationError

from trainer.encoding import parse_json
from trainer.errors import ErrorCode, JobError, SealingError, UnavailableError, UsageError
from trainer.exchange.limits import (
    MAX_DELETION_BYTES,
    MAX_EVIDENCE_ANSWER_BYTES,
    MAX_SEALED_EVENT_BYTES,
    MAX_STATUS_BYTES,
)
from trainer.models import Phase, Sha256Hex, Status, Strict
from trainer.provider.transport.carrier import ENDED, JobEvent, Progress, SealedEvent

DATASET_NAME: Final = "dataset.age"
RESULT_NAME: Final = "result.tar.age"
EVENTS_NAME: Final = "events.jsonl"
DELETION_NAME: Final = "deletion.json"
MAX_EVENTS_BYTES: Final = 64 << 20

_BLOCK: Final = 1 << 20
_DELETION_SECONDS: Final = 10.0
Size = Annotated[int, Field(ge=0, le=2**53 - 1)]


class SpoolTerms(Strict):
    """`exchange.json`: what the job accepts."""

    max_upload_bytes: Size


class SpoolResult(Strict):
    """`result.json`: what `result.tar.age` must be."""

    size: Size
    sha256: Sha256Hex


class SpoolEvent(Strict):
    """One line of `events.jsonl`: a private event, base64 of an age file."""

    id: Annotated[int, Field(ge=1, le=2**53 - 1)]
    sealed: Annotated[str, Field(max_length=MAX_SEALED_EVENT_BYTES)]


Document = TypeVar("Document", bound=Strict)
Found = TypeVar("Found")


@dataclass(frozen=True)
class SpoolDirectory:
    """Names and manners of the directory, for both sides."""

    path: Path

    def file(self, name: str) -> Path:
        """The place of a file."""
        return self.path / name

    def read(self, name: str, limit: int) -> bytes | None:
        """A small regular file; None while it is absent, larger than `limit`, or a link."""
        try:
            descriptor = os.open(self.file(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(descriptor)
        return data if len(data) <= limit else None

    def load(self, name: str, model: type[Document], limit: int = MAX_STATUS_BYTES) -> Document | None:
        """A document; None while there is none that can be read."""
        data = self.read(name, limit)
        try:
            return None if data is None else model.model_validate_json(data)
        except ValidationError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Place a small file by a rename; replaces whatever has its name."""
        with self.placing(name) as file:
            file.write(data)

    @contextmanager
    def placing(self, name: str) -> Iterator[BinaryIO]:
        """A new file under a name that nobody can guess; it becomes `name` when the block ends well."""
        partial = self.file(f".{secrets.token_hex(8)}.partial")
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.file(name))
        finally:
            partial.unlink(missing_ok=True)


class SpoolClient:
    """One job, by its spool directory; the same methods as `JobClient`.

    Args:
        directory: the job's `--spool` directory, or a copy that is kept in step with it.
        timeout: seconds to wait for the job's answer.
        pause: seconds between looks.
        sleep: waits.
    """

    def __init__(
        self,
        directory: Path,
        *,
        timeout: float = 600.0,
        pause: float = 0.2,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._spool = SpoolDirectory(directory)
        self._timeout = timeout
        self._pause = pause
        self._sleep = sleep
        if not directory.is_dir():
            raise UsageError(ErrorCode.FILE_NOT_FOUND, f"{directory} is not a directory")

    @property
    def peer_spki_sha256(self) -> None:
        """None: there is no TLS whose key could be checked."""
        return

    def attestation(self, nonce: str) -> bytes:
        """Evidence over `nonce`, as it lies there, unappraised.

        Raises:
            UnavailableError: none in time.
        """
        self._spool.put("nonce", nonce.encode() + b"\n")
        return self._wait(lambda: self._evidence(nonce), "no evidence over the nonce")

    def _evidence(self, nonce: str) -> bytes | None:
        data = self._spool.read("evidence.json", MAX_EVIDENCE_ANSWER_BYTES)
        return data if data is not None and _nonce_of(data) == nonce else None

    def upload(self, path: Path, *, progress: Progress | None = None, state: Path | None = None) -> None:  # noqa: ARG002
        """Place a sealed dataset. A copy that was interrupted is made anew, so `state` is not needed.

        Raises:
            UsageError: it cannot be read, or the directory not be written.
            JobError: it is too large for the job.
        """
        terms = self._spool.load("exchange.json", SpoolTerms)
        try:
            with path.open("rb") as source:
                size = os.fstat(source.fileno()).st_size
                if terms is not None and size > terms.max_upload_bytes:
                    raise _too_large(size, terms.max_upload_bytes)
                with self._spool.placing(DATASET_NAME) as target:
                    _copy(source, target, progress)
        except OSError as error:
            raise UsageError(ErrorCode.USAGE, f"cannot copy {path} to the spool: {error.strerror}") from error

    def status(self) -> Status:
        """The public status.

        While a dataset lies there that the job has not taken yet, why it refused an earlier one is left out.

        Raises:
            UnavailableError: none in time.
        """
        status = self._wait(lambda: self._spool.load("status.json", Status), "no status")
        waits = status.phase is Phase.AWAITING_DATASET and self._spool.file(DATASET_NAME).exists()
        return status.model_copy(update={"error": None}) if waits else status

    def events(self, token: str | None = None) -> Iterator[JobEvent]:
        """Events until the job is done or failed. Files cannot ask for a token: private events are sealed anyway.

        Args:
            token: None leaves private events out.
        """
        seen_status: Status | None = None
        last = 0
        while True:
            for event in self._sealed_events(last) if token is not None else ():
                last = event.id
                yield SealedEvent(last, event.sealed)
            status = self.status()
            if status != seen_status:
                seen_status = status
                yield status
            if status.phase in ENDED:
                return
            self._sleep(self._pause)

    def _sealed_events(self, after: int) -> Iterator[SpoolEvent]:
        data = self._spool.read(EVENTS_NAME, MAX_EVENTS_BYTES) or b""
        for line in data.split(b"\n")[:-1]:
            try:
                event = SpoolEvent.model_validate_json(line)
            except ValidationError:
                continue  # someone else wrote here; the sealed content is what counts
            if event.id > after:
                yield event

    def download_result(self, target: Path, *, progress: Progress | None = None) -> str:
        """Copy the sealed result to `target`, atomically; returns its SHA-256 in hex.

        Raises:
            UnavailableError: none in time.
            SealingError: it is not what the job announced.
            UsageError: `target` cannot be written.
        """
        wanted = self._wait(lambda: self._spool.load("result.json", SpoolResult), "no result")
        try:
            with SpoolDirectory(target.parent).placing(target.name) as file:
                with self._spool.file(RESULT_NAME).open("rb") as source:
                    found = _copy(source, file, progress)
                if found != wanted.sha256:
                    raise SealingError(
                        ErrorCode.RESULT_DIGEST_MISMATCH,
                        "the result is not what the job announced",
                        expected=wanted.sha256,
                        found=found,
                    )
        except OSError as error:
            raise UsageError(ErrorCode.USAGE, f"cannot copy the result to {target}: {error.strerror}") from error
        return wanted.sha256

    def acknowledge(self) -> bytes | None:
        """Say that the result arrived; the job ends. Returns its deletion statement; None where none comes."""
        self._spool.put("ack", b"")
        waited = 0.0
        while (statement := self._spool.read(DELETION_NAME, MAX_DELETION_BYTES)) is None:
            if waited >= min(self._timeout, _DELETION_SECONDS):
                return None
            self._sleep(self._pause)
            waited += self._pause
        return statement

    def _wait(self, look: Callable[[], Found | None], failure: str) -> Found:
        waited = 0.0
        while (found := look()) is None:
            if waited >= self._timeout:
                raise UnavailableError(
                    ErrorCode.TIMEOUT,
                    f"{self._spool.path}: {failure} in {self._timeout:.0f} s",
                    hint="does a job run with this spool directory?",
                )
            self._sleep(self._pause)
            waited += self._pause
        return found


def _copy(source: BinaryIO, target: BinaryIO, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    done = 0
    while block := source.read(_BLOCK):
        target.write(block)
        digest.update(block)
        done += len(block)
        if progress is not None:
            progress(done)
    return digest.hexdigest()


def _nonce_of(evidence: bytes) -> object:
    """The nonce in the claims, only to tell a new answer from an old one; appraisal checks it."""
    try:
        document = parse_json(evidence)
    except ValueError:
        return None
    claims = document.get("claims") if isinstance(document, dict) else None
    return claims.get("nonce") if isinstance(claims, dict) else None


def _too_large(size: int, limit: int) -> JobError:
    return JobError(
        ErrorCode.DATASET_TOO_LARGE,
        "the sealed dataset is too large for this job",
        expected=f"at most {limit} bytes",
        found=f"{size} bytes",
    )
