"""Passphrase recipients (`scrypt` stanzas), for identity files that a person keeps.

Source: c2sp.org/age, "The scrypt recipient type":

    wrap key = scrypt(passphrase, salt = "age-encryption.org/v1/scrypt" ‖ 16 random bytes,
                      N = 2^work factor, r = 8, p = 1)
    body     = ChaCha20-Poly1305(wrap key, nonce = 12 zero bytes, plaintext = file key)
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from trainer.sealing.age.identity import RecipientType
from trainer.sealing.age.stanza import Stanza, decode_base64, encode_base64, header_invalid

WORK_FACTOR: Final = 18
"""Work factor of new files: N = 2**18, 256 MiB and about a second, as the age command uses."""

MAX_WORK_FACTOR: Final = 20
"""Largest work factor that is read: 1 GiB. The number comes from the file, so an attacker may have chosen it."""

_SALT_BYTES: Final = 16
_SALT_LABEL: Final = b"age-encryption.org/v1/scrypt"
_ZERO_NONCE: Final = bytes(12)  # safe: a fresh salt makes a key that encrypts one message
_WORK_FACTOR_TEXT: Final = re.compile(r"[1-9][0-9]{0,3}")


class ScryptRecipient:
    """A passphrase to encrypt to; the only recipient of its file.

    Args:
        passphrase: its UTF-8 bytes.
        work_factor: base-2 logarithm of scrypt's N.

    Raises:
        ValueError: an empty passphrase, or a work factor that would not be read again.
    """

    recipient_type: Final = RecipientType.SCRYPT

    def __init__(self, passphrase: bytes, *, work_factor: int = WORK_FACTOR) -> None:
        if not passphrase:
            raise ValueError("is empty")
        if not 1 <= work_factor <= MAX_WORK_FACTOR:
            raise ValueError(f"work factor outside 1 to {MAX_WORK_FACTOR}")
        self._passphrase = passphrase
        self._work_factor = work_factor

    def __repr__(self) -> str:
        return "<ScryptRecipient>"

    __str__ = __repr__  # a passphrase has no public form

    def wrap(self, file_key: bytes) -> Stanza:
        """Encrypts the file key under a key derived from the passphrase and a fresh salt."""
        salt = os.urandom(_SALT_BYTES)
        key = _derive_wrap_key(self._passphrase, salt, self._work_factor)
        body = ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, file_key, None)
        return Stanza(RecipientType.SCRYPT, (encode_base64(salt), str(self._work_factor)), body)


class ScryptIdentity:
    """A passphrase to decrypt with.

    Args:
        passphrase: its UTF-8 bytes.
        max_work_factor: a file with a larger work factor is refused before scrypt runs.
    """

    def __init__(self, passphrase: bytes, *, max_work_factor: int = MAX_WORK_FACTOR) -> None:
        self._passphrase = passphrase
        self._max_work_factor = max_work_factor

    def __repr__(self) -> str:
        return "<ScryptIdentity>"

    def __str__(self) -> str:
        return self._passphrase.decode()

    def recipient(self) -> ScryptRecipient:
        """Returns a recipient with the same passphrase."""
        return ScryptRecipient(self._passphrase)

    def destroy(self) -> None:
        """Drops the passphrase. Its bytes are immutable, so they are freed and not overwritten."""
        self._passphrase = b""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Returns the file key if the passphrase is right, and None otherwise.

        Raises:
            SealingError: HEADER_INVALID: the scrypt stanza does not follow the format, or asks for too much work.
        """
        # At most one: `read_header` refuses a scrypt stanza among others.
        stanza = next((stanza for stanza in stanzas if stanza.type == RecipientType.SCRYPT), None)
        if stanza is None:
            return None
        if len(stanza.arguments) != 2:
            raise header_invalid("scrypt stanza: arguments", 2, len(stanza.arguments))
        salt = decode_base64(stanza.arguments[0], _SALT_BYTES, "scrypt stanza: salt")
        work_factor = stanza.arguments[1]
        if not _WORK_FACTOR_TEXT.fullmatch(work_factor):
            raise header_invalid("scrypt stanza: the work factor is not a plain decimal number")
        # Before scrypt runs, whose memory doubles with each unit: the file could otherwise exhaust the reader's.
        if int(work_factor) > self._max_work_factor:
            raise header_invalid(
                "scrypt stanza: work factor", f"at most {self._max_work_factor}", int(work_factor)
            )
        body = stanza.wrapped_file_key()
        key = _derive_wrap_key(self._passphrase, salt, int(work_factor))
        try:
            return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, body, None)
        except InvalidTag:
            return None


def _derive_wrap_key(passphrase: bytes, salt: bytes, work_factor: int) -> bytes:
    return Scrypt(salt=_SALT_LABEL + salt, length=32, n=1 << work_factor, r=8, p=1).derive(
        passphrase
    )
