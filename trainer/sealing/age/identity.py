"""The two interfaces that everything turns on: a recipient wraps a file key, an identity unwraps it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trainer.sealing.age.stanza import Stanza


class RecipientType(StrEnum):
    """Kinds of recipient that may not be mixed in one file: the weakest would decide what the file is worth."""

    HYBRID = "mlkem768x25519"
    X25519 = "X25519"
    SCRYPT = "scrypt"


class Recipient(Protocol):
    """Someone a file can be encrypted to. `str()` gives the public text form."""

    @property
    def recipient_type(self) -> RecipientType:
        """Which recipients this one may share a file with."""

    def wrap(self, file_key: bytes) -> Stanza:
        """Wrap a 16-byte file key so that only the matching identity can unwrap it."""


class Identity(Protocol):
    """The secret half. `str()` gives the secret text form; `repr()` gives nothing away."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """The file key from the first stanza that was made for this identity; None if there is none.

        Raises:
            SealingError: a stanza of this identity's type does not follow the format.
        """

    def recipient(self) -> Recipient:
        """The public half."""

    def destroy(self) -> None:
        """Overwrite the seed and drop the keys made of it; nothing can be unwrapped afterwards."""


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes) -> bytearray:
    """HKDF-SHA256 to 32 bytes, as the format uses it throughout; the caller's to wipe."""
    key = bytearray(32)
    HKDF(SHA256(), len(key), salt, info).derive_into(secret, key)
    return key
