"""The carrier over HTTPS: the provider's end, pinned to one TLS key, resumable in both directions."""

from __future__ import annotations

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
from trainer.models import Status
from trainer.provider.transport.carrier import CarrierKind, JobEvent, Progress
from trainer.provider.transport.downloading import ResultDownloader
from trainer.provider.transport.event_stream import EventStreamReader
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy
from trainer.provider.transport.uploading import DatasetUploader

_TIMEOUT_SECONDS: Final = 60.0


class JobClient:
    """One job, by its URL.

    The first connection records the TLS key that answers (`peer_spki_sha256`) unless it is known before; whoever
    answers later must hold the same key, or gets no byte. Whether that key is the job's is for appraisal to say.

    Args:
        url: `https://HOST:PORT`.
        pinned_spki_sha256: SHA-256 of the job's SubjectPublicKeyInfo in hex, from an earlier appraisal.
        timeout: seconds to connect, and between pieces of an answer.
        proxy: URL of an HTTP proxy to go through; the environment's proxies are not used.
        retries: failures in a row that transfers put up with.
        sleep: waits between retries.

    Raises:
        UsageError: not the address of a job.
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
        self._wire = PinnedHttpClient(url, pinned_spki_sha256=pinned_spki_sha256, timeout=timeout, proxy=proxy)
        self._retries = retries
        self._sleep = sleep

    @property
    def peer_spki_sha256(self) -> str | None:
        """SHA-256 of the TLS key that every connection must show, in hex; None before the first."""
        return self._wire.pin

    def attestation(self, nonce: str) -> bytes:
        """Evidence over `nonce`, as it came; at most `MAX_EVIDENCE_BYTES` long, otherwise unchecked.

        Args:
            nonce: 32 fresh random bytes in lower-case hex.

        Raises:
            UsageError: the nonce has another form.
            UnavailableError: the job has no evidence now, or cannot be reached.
            VerificationError: another TLS key answers.
        """
        return self._wire.fetch("GET", "/attestation", params={"nonce": nonce}, limit=MAX_EVIDENCE_ANSWER_BYTES)[1]

    def upload(self, path: Path, *, progress: Progress | None = None, state: Path | None = None) -> None:
        """Send a sealed dataset; see `DatasetUploader.send` for what it raises.

        Args:
            path: the sealed file.
            progress: told the bytes sent.
            state: file that lets a restarted client go on; nothing secret is in it.

        Raises:
            UsageError: no TLS key is known: the job was not attested.
        """
        self._wire.require_pin()
        DatasetUploader(self._wire, self._patience(), progress, state).send(path)

    def status(self) -> Status:
        """The public status.

        Raises:
            UnavailableError: the job cannot be reached, or answers something else.
        """
        _, body = self._wire.fetch("GET", "/status", limit=MAX_STATUS_BYTES)
        try:
            return Status.model_validate_json(body)
        except ValidationError:
            raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job's status cannot be read") from None

    def events(self, token: str | None = None) -> Iterator[JobEvent]:
        """Events until the job is done or failed; see `EventStreamReader.events` for what it raises.

        Args:
            token: the grant's token: private events come too, still sealed.

        Raises:
            UsageError: a token, but no TLS key known: it would go to whoever answers.
        """
        if token is not None:
            self._wire.require_pin()
        return EventStreamReader(self._wire, self._patience(), token).events()

    def download_result(self, target: Path, *, progress: Progress | None = None) -> str:
        """Fetch the sealed result to `target`, atomically; see `ResultDownloader.fetch` for what it raises."""
        return ResultDownloader(self._wire, self._patience(), target, progress).fetch()

    def acknowledge(self) -> bytes | None:
        """Say that the result arrived; the job ends. Returns its deletion statement; None where it gives none.

        Raises:
            UnavailableError: there is no result to acknowledge, or the job cannot be reached.
        """
        headers = {"Accept": DELETION_TYPE}
        _, body = self._wire.fetch("POST", "/ack", limit=MAX_DELETION_BYTES, headers=headers, accept=(200, 204))
        return body or None

    def close(self) -> None:
        """Close all connections."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _patience(self) -> RetryPolicy:
        return RetryPolicy(retries=self._retries, sleep=self._sleep)


HTTP_CARRIER: Final = CarrierKind(
    location="an https:// URL",
    serves=lambda location: location.startswith("https://"),
    connect=lambda location, pin: JobClient(location, pinned_spki_sha256=pin),
)
