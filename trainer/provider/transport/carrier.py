"""The interface of a carrier: what the provider's side asks of a job, whether HTTP or files carry it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from trainer.errors import ErrorCode, UsageError
from trainer.exchange.spool import Progress
from trainer.models import Phase, Status

Authorize = Callable[[int, str | None], str]
"""Size of an upload in bytes, digest of the job's TLS key (None without TLS) → the token that authorises it."""

PHASES_BEFORE_UPLOAD: Final = frozenset(
    {Phase.STARTING, Phase.PREPARING, Phase.AWAITING_DATASET, Phase.AWAITING_GRANT}
)
"""Phases in which a job has no dataset that it can open."""

DEFAULT_WAIT_SECONDS: Final = 600.0
"""How long an answer that comes by files is waited for, if the caller sets no bound."""

FINAL_PHASES: Final = frozenset({Phase.DONE, Phase.FAILED})
"""Phases after which no event follows."""


@dataclass(frozen=True)
class SealedEvent:
    """A private event, still sealed.

    Args:
        id: number of the event; grows within one carrier.
        sealed: base64 of an age file for the grant's recipients.
    """

    id: int
    sealed: str


JobEvent = Status | SealedEvent
"""An item of `Carrier.events`: a new public status, or a private event."""


class Carrier(Protocol):
    """The provider's end of an exchange with one job. Nothing that passes through it is plaintext."""

    @property
    def peer_spki_sha256(self) -> str | None:
        """SHA-256 of the TLS key that answered, in hex; None before a connection or if the carrier has no TLS."""

    def attestation(self, nonce: str) -> bytes:
        """Returns the job's evidence over `nonce` (64 hex digits); it has not been appraised."""

    def upload(
        self,
        path: Path,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        """Transfers a sealed dataset; continues an earlier attempt that was interrupted.

        Args:
            path: the sealed file.
            progress: receives the bytes transferred.
            state: file in which the carrier may keep what it needs to continue; it holds no secret.
            authorize: signs the authorisation of an upload; None shows none.
        """

    def withdraw(self, token: str) -> None:
        """Passes on the provider's withdrawal from a joint job; its status says whether it was heeded.

        Args:
            token: as `trainer.exchange.withdrawal` signs it.
        """

    def regrant(self, document: bytes) -> None:
        """Sends a re-grant; the job's status says what came of it."""

    def status(self) -> Status:
        """Returns the job's public status."""

    def events(self, token: str | None = None) -> Iterator[JobEvent]:
        """Yields events until the job is done or failed.

        Args:
            token: the grant's token for events; None leaves private events out.
        """

    def download_result(self, target: Path, *, limit: int, progress: Progress | None = None) -> str:
        """Transfers the sealed result, of at most `limit` bytes, to `target` and returns its SHA-256 in hex."""

    def deletion_statement(self) -> bytes | None:
        """Returns the job's statement of what it destroyed, unverified; None if the result has none."""

    def acknowledge(self, acknowledgement: str) -> bytes | None:
        """Confirms that the result arrived; returns the job's deletion statement, unverified, if it sends one.

        Args:
            acknowledgement: what the grant's secret gives for this result, 64 hex digits.
        """


def require_result_size(status: Status, limit: int) -> int:
    """Returns the size of the sealed result that a job announces, 0 if it announces none.

    Raises:
        UsageError: `result-too-large`: it is above `limit` bytes.
    """
    size = status.result_bytes or 0
    if size > limit:
        raise result_too_large(limit, size)
    return size


def result_too_large(limit: int, found: int) -> UsageError:
    """Returns the error for a sealed result of more than `limit` bytes."""
    return UsageError(
        ErrorCode.RESULT_TOO_LARGE,
        "the job's sealed result",
        expected=f"at most {limit} bytes",
        found=f"{found} bytes",
        hint="--max-bytes accepts a larger one, if you expect it",
    )


@dataclass(frozen=True)
class CarrierKind:
    """One kind of carrier, as `carrier_registry` lists it.

    Args:
        location: description of the locations that it serves, for help and error texts.
        serves: whether a location, as the user wrote it, belongs to this carrier.
        connect: makes the client for a location; the second argument is the SHA-256 of the only acceptable TLS
            key in hex, None before the job was appraised. A carrier without TLS ignores it. The third is how
            many seconds an answer is waited for; one that has a connection knows at once that there is none.
    """

    location: str
    serves: Callable[[str], bool]
    connect: Callable[[str, str | None, float], Carrier]
