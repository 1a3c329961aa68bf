"""The carrier over files: the provider's end of a spool directory, whose layout is `trainer.exchange.spool`.

Files carry no authentication: whoever can write to the directory can withhold or replace them. What counts is
checked elsewhere: evidence by appraisal, the sealed files by age and the receipt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from trainer.encoding import parse_json
from trainer.errors import ErrorCode, JobError, UnavailableError, UsageError
from trainer.exchange.limits import MAX_DELETION_BYTES, MAX_EVIDENCE_ANSWER_BYTES
from trainer.exchange.spool import (
    DATASET_NAME,
    DELETION_NAME,
    EVENTS_NAME,
    EVIDENCE_NAME,
    MAX_EVENTS_BYTES,
    NONCE_NAME,
    REGRANT_NAME,
    RESULT_INFO_NAME,
    RESULT_NAME,
    STATUS_NAME,
    TERMS_NAME,
    Progress,
    SpoolDirectory,
    SpoolFiles,
    SpoolTerms,
    authorization_name,
)
from trainer.exchange.spool_documents import SpoolEvent, SpoolResult
from trainer.exchange.withdrawal import withdrawal_name
from trainer.models import Phase, Status
from trainer.provider.transport.carrier import (
    DEFAULT_WAIT_SECONDS,
    FINAL_PHASES,
    Authorize,
    CarrierKind,
    JobEvent,
    SealedEvent,
    result_too_large,
)

_DELETION_SECONDS: Final = 10.0
"""Longest wait for the deletion statement after an acknowledgement."""

_ANY_TERMS: Final = SpoolTerms(max_upload_bytes=2**53 - 1)  # until the job has said its own

Answer = TypeVar("Answer")


class SpoolClient:
    """A `Carrier` for one job, by its spool.

    Args:
        spool: the job's `--spool` directory, a copy that is kept in sync with it, or a store.
        timeout: longest wait for an answer of the job, in seconds.
        pause: seconds between two looks at the directory.
        sleep: waits for some seconds; an argument for tests.
    """

    def __init__(
        self,
        spool: SpoolFiles,
        *,
        timeout: float = DEFAULT_WAIT_SECONDS,
        pause: float = 0.2,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._spool = spool
        self._dataset_name, self._regrant_name = DATASET_NAME, REGRANT_NAME
        self._timeout, self._pause, self._sleep = timeout, pause, sleep

    @property
    def peer_spki_sha256(self) -> None:
        """None: there is no TLS key to check."""

    def attestation(self, nonce: str) -> bytes:
        """Writes `nonce` and returns the evidence over it, unappraised.

        Raises:
            UnavailableError: no evidence over this nonce in time, or the nonce cannot be written.
        """
        self._put(NONCE_NAME, nonce.encode() + b"\n")
        return self._poll(lambda: self._evidence_over(nonce), "no evidence over the nonce")

    def _evidence_over(self, nonce: str) -> bytes | None:
        """Returns the evidence in the directory if its claims name this nonce, and None for an earlier answer.

        The claim only tells a new answer from an old one; appraisal checks the nonce.
        """
        data = self._spool.read(EVIDENCE_NAME, MAX_EVIDENCE_ANSWER_BYTES)
        try:
            document = parse_json(data or b"")
        except ValueError:
            return None
        claims = document.get("claims") if isinstance(document, dict) else None
        return data if isinstance(claims, dict) and claims.get("nonce") == nonce else None

    def upload(
        self,
        path: Path,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        """Copies a sealed dataset into the spool.

        Raises:
            UsageError: the file cannot be read, or the directory cannot be written; the job accepts the datasets
                of listed providers alone, and there is no `authorize` (`unauthorized`).
            JobError: the dataset is larger than the job accepts.
        """
        terms = self._spool.load(TERMS_NAME, SpoolTerms) or _ANY_TERMS
        if terms.providers and authorize is None:
            raise UsageError(
                ErrorCode.UNAUTHORIZED,
                "the job accepts the datasets of listed providers alone",
                hint="give the identity file (-i) whose provider key the job spec lists",
            )
        try:
            with path.open("rb") as source:
                size = os.fstat(source.fileno()).st_size
                if size > terms.max_upload_bytes:
                    raise JobError(
                        ErrorCode.DATASET_TOO_LARGE,
                        "the sealed dataset is too large",
                        expected=f"at most {terms.max_upload_bytes} bytes",
                        found=f"{size} bytes",
                    )
                self._dataset_name = terms.dataset_name(source)
                if authorize is not None:  # first: the job reads it once the dataset is there
                    token = authorize(size, None).encode() + b"\n"
                    self._spool.put(authorization_name(self._dataset_name), token)
            self._spool.send_file(self._dataset_name, path, state, progress)
        except OSError as error:
            raise UsageError(
                ErrorCode.USAGE, f"cannot copy {path} to the spool: {error.strerror}"
            ) from error

    def withdraw(self, token: str) -> None:
        """Writes the provider's withdrawal; raises UnavailableError if it cannot be written."""
        self._put(withdrawal_name(token), token.encode() + b"\n")

    def regrant(self, document: bytes) -> None:
        """Writes a re-grant, which the job removes when it reads it; UnavailableError if it cannot be written."""
        terms = self._spool.load(TERMS_NAME, SpoolTerms) or _ANY_TERMS
        self._regrant_name = terms.regrant_name(document)
        self._put(self._regrant_name, document)

    def status(self) -> Status:
        """Returns the job's public status.

        Error code and report of a refused dataset are left out while a newer dataset, or re-grant, is in the
        directory that the job has not taken yet: they are about the earlier one.

        Raises:
            UnavailableError: no readable status in time.
        """
        status = self._poll(lambda: self._spool.load(STATUS_NAME, Status), "no status")
        may_regrant = status.phase is Phase.AWAITING_GRANT
        not_taken = (
            (may_regrant or status.phase is Phase.AWAITING_DATASET)
            and self._spool.has(self._dataset_name)
        ) or (may_regrant and self._spool.has(self._regrant_name))
        return status.without_refusal() if not_taken else status

    def events(self, token: str | None = None) -> Iterator[JobEvent]:
        """Yields events until the job is done or failed.

        Args:
            token: None leaves private events out. Files cannot check a token; the events are sealed in any case.

        Raises:
            UnavailableError: no readable status in time.
        """
        # Private events before the status: after a final status nobody reads the file again.
        last_status: Status | None = None
        last_id = 0
        while True:
            if token is not None:
                for event in self._events_after(last_id):
                    last_id = event.id
                    yield SealedEvent(last_id, event.sealed)
            status = self.status()
            if status != last_status:
                last_status = status
                yield status
            if status.phase in FINAL_PHASES:
                return
            self._sleep(self._pause)

    def _events_after(self, last_id: int) -> Iterator[SpoolEvent]:
        data = self._spool.read(EVENTS_NAME, MAX_EVENTS_BYTES) or b""
        # What follows the last line end is a line that is being written.
        for line in data.split(b"\n")[:-1]:
            try:
                event = SpoolEvent.model_validate_json(line)
            except ValidationError:
                continue  # written by somebody else; only what opens with the identity counts
            if event.id > last_id:
                yield event

    def download_result(self, target: Path, *, limit: int, progress: Progress | None = None) -> str:
        """Copies the sealed result to `target`, atomically, and returns its SHA-256 in hex.

        Args:
            target: path of the result.
            limit: largest acceptable size in bytes.
            progress: receives the bytes copied.

        Raises:
            UnavailableError: no result in time, or a link or special file in its place.
            SealingError: the file is not the one that the job announced (`result-digest-mismatch`).
            UsageError: `target` cannot be written, or the result is larger than `limit`.
        """
        # `result.json` is placed after the result, so a result that it announces is complete.
        announced = self._poll(lambda: self._spool.load(RESULT_INFO_NAME, SpoolResult), "no result")
        if announced.size > limit:
            raise result_too_large(limit, announced.size)
        try:
            self._spool.receive_file(RESULT_NAME, target, announced, progress)
        except OSError as error:
            raise UsageError(
                ErrorCode.USAGE, f"cannot copy the result to {target}: {error.strerror}"
            ) from error
        return announced.sha256

    def deletion_statement(self) -> bytes | None:
        """Returns the deletion statement from beside the result, unverified; None without one."""
        return self._spool.read(DELETION_NAME, MAX_DELETION_BYTES)

    def acknowledge(self, acknowledgement: str) -> bytes | None:
        """Writes the acknowledgement, after which the job ends.

        Args:
            acknowledgement: what the grant's secret gives for this result, 64 hex digits.

        Returns:
            The deletion statement that the job signs after it, unverified; the one from beside the result, or
            None without one, if no other appears within ten seconds.

        Raises:
            UnavailableError: the acknowledgement cannot be written.
        """
        earlier = self.deletion_statement()
        announced = self._spool.load(RESULT_INFO_NAME, SpoolResult)
        terms = self._spool.load(TERMS_NAME, SpoolTerms) or _ANY_TERMS
        self._put(terms.acknowledgement_name(acknowledgement), acknowledgement.encode() + b"\n")
        # A job that goes on signs none.
        seconds = _DELETION_SECONDS if announced is None or announced.final else 0

        def look() -> bytes | None:
            return None if (statement := self.deletion_statement()) == earlier else statement

        with suppress(UnavailableError):
            return self._poll(look, "no deletion statement", timeout=min(self._timeout, seconds))
        return earlier

    def _put(self, name: str, data: bytes) -> None:
        # Whoever can write to the directory can make a directory of that name.
        try:
            self._spool.put(name, data)
        except OSError as error:
            raise UnavailableError(
                ErrorCode.JOB_UNREACHABLE,
                f"{name} in the spool",
                expected="a file that can be written",
                found=error.strerror,
            ) from error

    def _poll(
        self, look: Callable[[], Answer | None], failure: str, *, timeout: float | None = None
    ) -> Answer:
        """Returns the first answer of `look` that is not None.

        Args:
            look: called until it returns an answer.
            failure: says what is missing, in the error.
            timeout: longest wait in seconds; None is that of the client.

        Raises:
            UnavailableError: there is none within the timeout.
        """
        timeout = self._timeout if timeout is None else timeout
        waited = 0.0
        while (answer := look()) is None:
            if waited >= timeout:
                what = f"{self._spool.where}: {failure} in {timeout:.0f} s"
                hint = "does a job run with this spool?"
                error = UnavailableError(ErrorCode.TIMEOUT, what, hint=hint)
                error.waited = waited
                raise error
            self._sleep(self._pause)
            waited += self._pause
        return answer


def _directory(location: str) -> Path:
    return Path(location.removeprefix("file://"))


SPOOL_CARRIER: Final = CarrierKind(
    location="a spool directory",
    serves=lambda location: _directory(location).is_dir(),
    connect=lambda location, _pin, wait: SpoolClient(
        SpoolDirectory(_directory(location)), timeout=wait
    ),
)
