"""Provider keys: Ed25519 (RFC 8032), with which a data provider signs what it sends, each signature in one domain.

    public   ed25519:HEX           named by a job spec under `exchange.providers`
    secret   ed25519-secret:HEX    in the provider's identity file, on a comment line that age skips

HEX is 32 bytes. A signature covers domain ‖ 0 ‖ document, so that what was signed for one use is worth nothing for
another.
"""

from __future__ import annotations

import os
import re
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from trainer.errors import ErrorCode, UsageError

_PUBLIC: Final = "ed25519:"
_SECRET: Final = "ed25519-secret:"  # noqa: S105 -- a prefix
_SEED_BYTES: Final = 32


class ProviderKey:
    """The secret key of one provider. `str()` returns its secret text form; `repr()` shows nothing secret.

    Args:
        seed: 32 random bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = _PUBLIC + self._key.public_key().public_bytes_raw().hex()
        """The public key in its text form."""

    def __str__(self) -> str:
        return _SECRET + self._seed.hex()

    def __repr__(self) -> str:
        return f"ProviderKey({self.public})"

    def sign(self, domain: str, document: bytes) -> bytes:
        """Returns the signature over domain ‖ 0 ‖ document, 64 bytes."""
        return self._key.sign(_signed_bytes(domain, document))


def generate_provider_key() -> ProviderKey:
    """Returns a new random key."""
    return ProviderKey(os.urandom(_SEED_BYTES))


def parse_provider_key(text: str) -> ProviderKey:
    """Parses the secret text form.

    Raises:
        UsageError: IDENTITY_INVALID; the message quotes no part of `text`.
    """
    if re.fullmatch(rf"{_SECRET}[0-9a-f]{{64}}", text) is None:
        raise UsageError(
            ErrorCode.IDENTITY_INVALID,
            "the provider key",
            expected=f"{_SECRET} and 64 hex digits",
            found="other text",
        )
    return ProviderKey(bytes.fromhex(text.removeprefix(_SECRET)))


def is_signed_by(public: str, signature: bytes, domain: str, document: bytes) -> bool:
    """Returns whether a signature over domain ‖ 0 ‖ document is by the owner of a public key.

    Args:
        public: the public text form.
        signature: as received.
        domain: what the signature is for.
        document: exact bytes.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public.removeprefix(_PUBLIC)))
        key.verify(signature, _signed_bytes(domain, document))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed_bytes(domain: str, document: bytes) -> bytes:
    # The zero byte ends the domain: no document of one domain can begin like another domain.
    return domain.encode() + b"\0" + document
