"""Text forms of recipients and identities, identity files, and identities from seeds."""

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
    """Parses a recipient: `age1pq1…` (hybrid) or `age1…` (X25519).

    Raises:
        UsageError: RECIPIENT_INVALID.
    """
    try:
        if text.startswith(f"{hybrid.RECIPIENT_PREFIX}1"):
            return HybridRecipient(bech32_decode(hybrid.RECIPIENT_PREFIX, text))
        return X25519Recipient(bech32_decode(x25519.RECIPIENT_PREFIX, text))
    except ValueError as error:
        hint = "recipients look like age1…"
        # The beginning of hybrid identities too.
        if text.upper().startswith(x25519.IDENTITY_PREFIX.upper()):
            hint = "that is an identity: keep it secret; its recipient starts with age1"
        raise UsageError(ErrorCode.RECIPIENT_INVALID, f"the recipient {error}", hint=hint) from None


def parse_identity(text: str) -> Identity:
    """Parses an identity: `AGE-SECRET-KEY-PQ-1…` (hybrid) or `AGE-SECRET-KEY-1…` (X25519).

    Raises:
        UsageError: IDENTITY_INVALID; the message quotes no part of `text`.
    """
    # The text of an identity is in upper case, which distinguishes it from a recipient at a glance.
    if text != text.upper():
        raise UsageError(ErrorCode.IDENTITY_INVALID, "the identity is not in upper case")
    try:
        if text.startswith(_HYBRID_IDENTITY_START):
            return HybridIdentity(bech32_decode(hybrid.IDENTITY_PREFIX, text.lower()))
        return X25519Identity(bech32_decode(x25519.IDENTITY_PREFIX, text.lower()))
    except ValueError as error:
        raise UsageError(ErrorCode.IDENTITY_INVALID, f"the identity {error}") from None


def parse_identity_file(text: str) -> tuple[Identity, ...]:
    """Parses an identity file as `age-keygen` writes it: one identity per line, blank lines, `#` comments.

    Raises:
        UsageError: IDENTITY_INVALID: a line, named by its number, is not an identity, or there is none.
    """
    identities = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            try:
                identities.append(parse_identity(line.strip()))
            except UsageError as error:
                raise UsageError(
                    error.code, f"identity file, line {number}: {error.message}"
                ) from None
    if not identities:
        raise UsageError(ErrorCode.IDENTITY_INVALID, "the identity file holds no identity")
    return tuple(identities)


def identity_from_seed(seed: bytes | bytearray, *, hybrid: bool = True) -> Identity:
    """Returns the identity whose private key is expanded from a seed.

    Args:
        seed: 32 bytes, uniformly random or derived for this purpose only.
        hybrid: False for X25519.

    Raises:
        ValueError: `seed` has another length.
    """
    return HybridIdentity(seed) if hybrid else X25519Identity(seed)


def generate_identity(*, hybrid: bool = True) -> Identity:
    """Returns a new random identity; `hybrid=False` for X25519."""
    return identity_from_seed(os.urandom(32), hybrid=hybrid)
