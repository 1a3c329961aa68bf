"""The carrier over HTTPS: the provider's end, pinned to one TLS key, resumable in both directions."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from pydantic import ValidationError

from trainer.errors import ErrorCode, UnavailableError
from trainer.exchange.limits import (
    DELETION_TYPE,
    MAX_DELETION_BYTES,
    MAX_EVIDENCE_ANSWER_BYTES,
    MAX_STATUS_BYTES,
)
from trainer.exchange.spool import Progress
from trainer.models import Status
from trainer.provider.transport.carrier import Authorize, CarrierKind, JobEvent
from trainer.provider.transport.downloading import ResultDownloader
from trainer.provider.transport.event_stream import EventStreamReader
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy
from trainer.provider.transport.uploading import DatasetUploader

_TIMEOUT_SECONDS: Final = 60.0


class JobClient:
    """A `Carrier` for one job, by its URL.

    The first connection records the TLS key that answers (`peer_spki_sha256`), unless the key is given. Every
    later connection must show the same key before it gets a byte. Appraisal decides whether it is the job's key.

    Args:
        url: `https://HOST:PORT`.
        pinned_spki_sha256: SHA-256 of the job's SubjectPublicKeyInfo in hex, from an earlier appraisal.
        timeout: seconds to connect, and between two pieces of a response.
        proxy: URL of an HTTP proxy; the proxy variables of the environment are not used.
        retries: consecutive failures after which a transfer gives up.
        sleep: waits for some seconds; an argument for tests.

    Raises:
        UsageError: not the URL of a job.
    """

    def __init__(
        self,
        url: str,
        *,
        pinned_spki_sha256: str | None = None,
        timeout: float = _TIMEOUT_SECONDS,
        proxy: str | None = None,
        retries: int = 6,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = PinnedHttpClient(
            url, pinned_spki_sha256=pinned_spki_sha256, timeout=timeout, proxy=proxy
        )
        # Each transfer counts its own failures.
        self._new_retry_policy = functools.partial(RetryPolicy, retries=retries, sleep=sleep)

    @property
    def peer_spki_sha256(self) -> str | None:
        """SHA-256 of the TLS key that every connection must show, in hex; None before the first connection."""
        return self._http.pin

    def attestation(self, nonce: str) -> bytes:
        """Returns the evidence over `nonce`, unappraised; at most `MAX_EVIDENCE_ANSWER_BYTES` long.

        Args:
            nonce: 32 fresh random bytes in lower-case hex.

        Raises:
            UsageError: the nonce has another form.
            UnavailableError: the job has no evidence yet, or cannot be reached.
            VerificationError: another TLS key answers.
        """
        return self._http.fetch(
            "GET", "/attestation", params={"nonce": nonce}, limit=MAX_EVIDENCE_ANSWER_BYTES
        )[1]

    def upload(
        self,
        path: Path,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        """Sends a sealed dataset; continues where an earlier attempt ended.

        Args:
            path: the sealed file.
            progress: receives the bytes sent.
            state: file with which a restarted client continues; it holds no secret.
            authorize: signs the authorisation of an upload; None shows none.

        Raises:
            UsageError: no TLS key is known because the job was not attested; the file cannot be read, is empty, or
                changed in the meantime; the job accepts the uploads of others alone (`unauthorized`).
            JobError: the dataset is larger than the job accepts.
            UnavailableError: the job takes no dataset now, or cannot be reached.
            VerificationError: another TLS key answers.
        """
        self._http.require_pin()
        DatasetUploader(self._http, self._new_retry_policy(), progress, state, authorize).send(path)

    def withdraw(self, token: str) -> None:
        """Passes on the provider's withdrawal from a joint job; its status says whether it was heeded.

        Raises:
            UsageError: the job is no joint one, or lists others (`unauthorized`); or no TLS key is known.
            UnavailableError: the training has begun (`wrong-phase`), or the job cannot be reached.
        """
        self._http.require_pin()
        headers = {"Authorization": f"Bearer {token}"}
        self._http.fetch("POST", "/withdrawal", headers=headers, accept=(204,))

    def regrant(self, document: bytes) -> None:
        """Sends a re-grant.

        Raises:
            UsageError: no TLS key is known because the job was not attested.
            UnavailableError: the job waits for no re-grant (`wrong-phase`), or cannot be reached.
            VerificationError: another TLS key answers.
        """
        self._http.require_pin()
        headers = {"Content-Type": "application/json"}
        self._http.fetch("POST", "/regrant", headers=headers, content=document, accept=(202,))

    def status(self) -> Status:
        """Returns the job's public status.

        Raises:
            UnavailableError: the job cannot be reached, or its answer is not a status.
        """
        _, body = self._http.fetch("GET", "/status", limit=MAX_STATUS_BYTES)
        try:
            return Status.model_validate_json(body)
        except ValidationError:
            raise UnavailableError(
                ErrorCode.JOB_UNREACHABLE, "the job's status cannot be read"
            ) from None

    def events(self, token: str | None = None) -> Iterator[JobEvent]:
        """Yields events until the job is done or failed; reconnects after a broken connection.

        Args:
            token: the grant's token for events; with it private events come too, still sealed.

        Raises:
            UsageError: the token is wrong, or no TLS key is known: anyone who answers would get the token.
            UnavailableError: the job cannot be reached any more.
        """
        if token is not None:
            self._http.require_pin()
        return EventStreamReader(self._http, self._new_retry_policy(), token).events()

    def download_result(self, target: Path, *, limit: int, progress: Progress | None = None) -> str:
        """Downloads the sealed result to `target`, atomically, and returns its SHA-256 in hex.

        Args:
            target: path of the result.
            limit: largest acceptable size in bytes.
            progress: receives the bytes that are stored.

        Raises:
            UsageError: `target` cannot be written, or the result is larger than `limit`.
            UnavailableError: there is no result yet, or the job cannot be reached.
            SealingError: the file is not the one that the job announced (`result-digest-mismatch`).
        """
        return ResultDownloader(
            self._http, self._new_retry_policy(), target, limit, progress
        ).fetch()

    def deletion_statement(self) -> bytes:
        """Returns the deletion statement that the job serves beside its result, unverified.

        Raises:
            UnavailableError: there is no result yet, or the job cannot be reached.
        """
        return self._http.fetch("GET", "/deletion", limit=MAX_DELETION_BYTES)[1]

    def acknowledge(self, acknowledgement: str) -> bytes | None:
        """Confirms that the result arrived, so that the job ends, and returns its deletion statement, unverified.

        Args:
            acknowledgement: what the grant's secret gives for this result, 64 hex digits.

        Raises:
            UsageError: it acknowledges another result, or no TLS key is known: anyone who answers would get it.
            UnavailableError: there is no result to acknowledge, or the job cannot be reached.
        """
        self._http.require_pin()
        headers = {"Accept": DELETION_TYPE, "Authorization": f"Bearer {acknowledgement}"}
        _, body = self._http.fetch(
            "POST", "/ack", limit=MAX_DELETION_BYTES, headers=headers, accept=(200, 204)
        )
        return body or None

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


HTTP_CARRIER: Final = CarrierKind(
    location="an https:// URL",
    serves=lambda location: location.startswith("https://"),
    connect=lambda location, pin, _wait: JobClient(location, pinned_spki_sha256=pin),
)
