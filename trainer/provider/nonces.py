"""Nonces are used once: the provider's machine remembers which evidence each of them was spent on.

The first half is pure; `spend_nonce` keeps the list in a file. Only digests are kept. A nonce is forgotten once
evidence for it could not be fresh any more, whatever the policy says.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from trainer.encoding import canonical_json, parse_json, sha256_hex
from trainer.errors import TrainerError
from trainer.models import Sha256Hex, Strict, UnixTime
from trainer.sealing.atomic_files import PRIVATE_MODE, replace_atomically

KEEP_SECONDS: Final = 31 * 86400
"""A day beyond the longest `freshness.max_age_seconds` that a policy can name, 30 days."""

MAX_NONCES: Final = 4096
MAX_FILE_BYTES: Final = 1 << 20


class SpentNonce(Strict):
    """One nonce, and the evidence that it was spent on; `at` is when, in Unix seconds."""

    nonce_sha256: Sha256Hex
    evidence_sha256: Sha256Hex
    at: UnixTime


class SpentNonces(Strict):
    """All nonces that are remembered, oldest first."""

    version: Literal[1] = 1
    spent: Annotated[tuple[SpentNonce, ...], Field(max_length=MAX_NONCES)] = ()

    def evidence_of(self, nonce: str) -> str | None:
        """Digest of the evidence that a nonce was spent on; None if it was not spent."""
        digest = sha256_hex(bytes.fromhex(nonce))
        return next((entry.evidence_sha256 for entry in self.spent if entry.nonce_sha256 == digest), None)

    def spending(self, nonce: str, evidence_sha256: str, now: int) -> SpentNonces:
        """With one more nonce, and without those that are too old or too many."""
        new = SpentNonce(nonce_sha256=sha256_hex(bytes.fromhex(nonce)), evidence_sha256=evidence_sha256, at=now)
        kept = [entry for entry in self.spent if entry.at > now - KEEP_SECONDS]
        return SpentNonces(spent=(*kept, new)[-MAX_NONCES:])


def parse_spent_nonces(data: bytes) -> SpentNonces:
    """Read the file's content; nothing at all is an empty list.

    Raises:
        ValueError: not of this form.
    """
    if not data:
        return SpentNonces()
    parse_json(data)
    return SpentNonces.model_validate_json(data)


def spend_nonce(path: Path, nonce: str, evidence_sha256: str, *, now: int) -> bool | None:
    """Note in the file at `path` that a nonce is spent on this evidence.

    Args:
        path: the file; it, its directory and a lock file beside it are made if absent, for their owner only.
        nonce: 64 hex digits.
        evidence_sha256: SHA-256 of the evidence's canonical bytes.
        now: Unix seconds.

    Returns:
        True if the nonce was unused, or spent on this very evidence before; False if it was spent on other
        evidence; None if the file cannot be read or written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock")):
            return _spend(path, nonce, evidence_sha256, now)
    except (OSError, ValueError, TrainerError):
        return None


def _spend(path: Path, nonce: str, evidence_sha256: str, now: int) -> bool:
    spent = parse_spent_nonces(_read(path))
    earlier = spent.evidence_of(nonce)
    if earlier is None:
        with replace_atomically(path, PRIVATE_MODE) as file:
            file.write(canonical_json(spent.spending(nonce, evidence_sha256, now).model_dump(mode="json")))
    return earlier in (None, evidence_sha256)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return b""
    if len(data) > MAX_FILE_BYTES:
        raise ValueError("too large")
    return data


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock: two runs at once must not both find a nonce unused."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
