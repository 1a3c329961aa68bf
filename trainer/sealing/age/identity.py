"""The two interfaces of the format: a recipient wraps a file key, an identity unwraps it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trainer.sealing.age.stanza import Stanza


class RecipientType(StrEnum):
    """Recipient types, by the name in their stanzas.

    Types are not mixed in one file: whoever breaks the weakest recipient reads the file.
    """

    HYBRID = "mlkem768x25519"
    X25519 = "X25519"
    SCRYPT = "scrypt"


class Recipient(Protocol):
    """A public key to encrypt to. `str()` returns its text form."""

    @property
    def recipient_type(self) -> RecipientType:
        """The type of the stanza that `wrap` makes."""

    def wrap(self, file_key: bytes) -> Stanza:
        """Encrypts a 16-byte file key so that only the matching identity can decrypt it."""


class Identity(Protocol):
    """A private key to decrypt with. `str()` returns its secret text form; `repr()` shows nothing secret."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Returns the file key from the first stanza that was made for this identity, or None.

        Raises:
            SealingError: HEADER_INVALID: a stanza of this identity's type does not follow the format.
        """

    def recipient(self) -> Recipient:
        """Returns the public key of this identity."""

    def destroy(self) -> None:
        """Overwrites the seed and drops the keys made from it; afterwards this identity unwraps nothing."""


def hkdf_sha256(secret: bytes | bytearray, salt: bytes, info: bytes) -> bytearray:
    """Derives 32 bytes with HKDF-SHA256 (RFC 5869). The caller wipes the result."""
    key = bytearray(32)
    HKDF(SHA256(), len(key), salt, info).derive_into(secret, key)
    return key
