"""What the provider's side can ask of a job, whatever carries it: HTTP or files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.models import Phase, Status

Progress = Callable[[int], None]
"""Told the bytes done so far, cumulative; may go back when part of a transfer is repeated."""

ENDED = frozenset({Phase.DONE, Phase.FAILED})
"""Phases after which no event follows."""


@dataclass(frozen=True)
class SealedEvent:
    """A private event, still sealed.

    Args:
        id: grows with every event of one carrier.
        sealed: base64 of an age file for the grant's recipients.
    """

    id: int
    sealed: str


JobEvent = Status | SealedEvent
"""What `events` gives: a new public status, or a private event."""


class Carrier(Protocol):
    """The provider's side of an exchange. Nothing that passes it is plaintext."""

    @property
    def peer_spki_sha256(self) -> str | None:
        """SHA-256 of the TLS key that answered, in hex; None before a connection or where there is no TLS."""

    def attestation(self, nonce: str) -> bytes:
        """Evidence over `nonce` (64 hex digits), unappraised."""

    def upload(self, path: Path, *, progress: Progress | None = None, state: Path | None = None) -> None:
        """Hand over a sealed dataset; goes on where an earlier attempt ended."""

    def status(self) -> Status:
        """The public status."""

    def events(self, token: str | None = None) -> Iterator[JobEvent]:
        """Events until the job is done or failed."""

    def download_result(self, target: Path, *, progress: Progress | None = None) -> str:
        """Fetch the sealed result to `target`; returns its SHA-256 in hex."""

    def acknowledge(self) -> bytes | None:
        """Say that the result arrived; returns the job's deletion statement, unchecked, where one comes."""
