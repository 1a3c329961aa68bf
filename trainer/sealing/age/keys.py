"""Keys as text: recipients and identities are read from strings, files and seeds."""

from __future__ import annotations

import os

from trainer.errors import ErrorCode, UsageError
from trainer.sealing.age import hybrid, x25519
from trainer.sealing.age.bech32 import bech32_decode
from trainer.sealing.age.hybrid import HybridIdentity, HybridRecipient
from trainer.sealing.age.identity import Identity, Recipient
from trainer.sealing.age.x25519 import X25519Identity, X25519Recipient

_HYBRID_IDENTITY_START = f"{hybrid.IDENTITY_PREFIX}1".upper()


def parse_recipient(text: str) -> Recipient:
    """Read `age1pq1…` or `age1…`.

    Raises:
        UsageError: not a recipient that files can be encrypted to.
    """
    try:
        if text.startswith(f"{hybrid.RECIPIENT_PREFIX}1"):
            return HybridRecipient(bech32_decode(hybrid.RECIPIENT_PREFIX, text))
        return X25519Recipient(bech32_decode(x25519.RECIPIENT_PREFIX, text))
    except ValueError as error:
        hint = (
            "that is an identity: keep it secret; its recipient starts with age1" if _looks_secret(text) else None
        )
        raise UsageError(
            ErrorCode.RECIPIENT_INVALID, f"the recipient {error}", hint=hint or "recipients look like age1…"
        ) from None


def parse_identity(text: str) -> Identity:
    """Read `AGE-SECRET-KEY-PQ-1…` or `AGE-SECRET-KEY-1…`.

    Raises:
        UsageError: not an identity; quotes no part of it.
    """
    try:
        if text.startswith(_HYBRID_IDENTITY_START):
            return HybridIdentity(bech32_decode(hybrid.IDENTITY_PREFIX, _lower(text)))
        return X25519Identity(bech32_decode(x25519.IDENTITY_PREFIX, _lower(text)))
    except ValueError as error:
        raise UsageError(ErrorCode.IDENTITY_INVALID, f"the identity {error}") from None


def parse_identity_file(text: str) -> tuple[Identity, ...]:
    """Read the identities of a file as `age-keygen` writes it: one a line, `#` comments and blank lines between.

    Raises:
        UsageError: a line is not an identity (named by its number), or there is none.
    """
    identities = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            try:
                identities.append(parse_identity(line.strip()))
            except UsageError as error:
                raise UsageError(error.code, f"identity file, line {number}: {error.message}") from None
    if not identities:
        raise UsageError(ErrorCode.IDENTITY_INVALID, "the identity file holds no identity")
    return tuple(identities)


def identity_from_seed(seed: bytes | bytearray, *, hybrid: bool = True) -> Identity:
    """The identity that a 32-byte secret is.

    Args:
        seed: uniformly random, or derived for this use alone.
        hybrid: False gives X25519.

    Raises:
        ValueError: another length.
    """
    return HybridIdentity(seed) if hybrid else X25519Identity(seed)


def generate_identity(*, hybrid: bool = True) -> Identity:
    """A new random identity."""
    return identity_from_seed(os.urandom(32), hybrid=hybrid)


def _lower(text: str) -> str:
    if text != text.upper():
        raise ValueError("is not in upper case")
    return text.lower()


def _looks_secret(text: str) -> bool:
    return text.upper().startswith(x25519.IDENTITY_PREFIX.upper())
