"""The list of spent nonces: the provider's machine remembers which evidence it accepted for each nonce.

Evidence that comes back over a nonce that other evidence was accepted for is a replay. The list is a file with
digests only. A nonce is dropped once evidence over it could not be fresh any more under any policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from trainer.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.encoding import canonical_json, parse_json, sha256_hex
from trainer.errors import TrainerError
from trainer.models import One, Sha256Hex, Strict, UnixTime
from trainer.provider.local_files import lock_exclusively

RETENTION_SECONDS: Final = 31 * 86400
"""A day more than the longest `freshness.max_age_seconds` that a policy can name, 30 days."""

MAX_NONCES: Final = 4096
MAX_FILE_BYTES: Final = 1 << 20


class SpentNonce(Strict):
    """A nonce, the evidence that it was spent on, and the time `at` of it in Unix seconds; digests in hex."""

    nonce_sha256: Sha256Hex
    evidence_sha256: Sha256Hex
    at: UnixTime


class SpentNonces(Strict):
    """The remembered nonces, oldest first."""

    version: One = 1
    spent: Annotated[tuple[SpentNonce, ...], Field(max_length=MAX_NONCES)] = ()

    def find_evidence(self, nonce: str) -> str | None:
        """Returns the digest of the evidence that a nonce was spent on; None if it was not spent."""
        digest = sha256_hex(bytes.fromhex(nonce))
        return next(
            (entry.evidence_sha256 for entry in self.spent if entry.nonce_sha256 == digest), None
        )

    def add_nonce(self, nonce: str, evidence_sha256: str, now: int) -> SpentNonces:
        """Returns the list with one more nonce, without those that are too old or beyond `MAX_NONCES`."""
        added = SpentNonce(
            nonce_sha256=sha256_hex(bytes.fromhex(nonce)), evidence_sha256=evidence_sha256, at=now
        )
        recent = [entry for entry in self.spent if entry.at > now - RETENTION_SECONDS]
        return SpentNonces(spent=(*recent, added)[-MAX_NONCES:])


def parse_spent_nonces(data: bytes) -> SpentNonces:
    """Parses the content of the file; an empty file is an empty list.

    Raises:
        ValueError: the content has another form.
    """
    if not data:
        return SpentNonces()
    parse_json(data)  # refuses duplicate keys, which pydantic accepts
    return SpentNonces.model_validate_json(data)


def spend_nonce(path: Path, nonce: str, evidence_sha256: str, *, now: int) -> bool | None:
    """Records in the file at `path` that a nonce is spent on this evidence.

    Args:
        path: the file; it, its directory and a lock file beside it are created if absent, mode for the owner only.
        nonce: 64 hex digits.
        evidence_sha256: SHA-256 of the evidence's canonical bytes.
        now: Unix seconds.

    Returns:
        True if the nonce was unused, or spent on the same evidence before; False if it was spent on other
        evidence; None if the file cannot be read or written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Two concurrent runs must not both find a nonce unused. A lock file of its own: `path` is replaced by a
        # rename, and a lock on the old file would exclude nobody.
        with lock_exclusively(path.with_name(path.name + ".lock")):
            spent = parse_spent_nonces(_read_file(path))
            earlier = spent.find_evidence(nonce)
            if earlier is None:
                extended = spent.add_nonce(nonce, evidence_sha256, now)
                with replace_atomically(path, PRIVATE_MODE) as file:
                    file.write(canonical_json(extended.model_dump(mode="json")))
            return earlier in (None, evidence_sha256)
    except (OSError, ValueError, TrainerError):
        return None


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return b""
    if len(data) > MAX_FILE_BYTES:
        raise ValueError("too large")
    return data
