"""Passphrases (`scrypt` stanzas): for identity files that a person keeps.

Source: C2SP `age.md`, "The scrypt recipient type".
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
"""What new files use: 2**18 rounds, 256 MiB and about a second, as the age command does."""

MAX_WORK_FACTOR: Final = 20
"""What is still read: 1 GiB. The number comes from the file, so from whoever wrote it."""

_SALT_BYTES: Final = 16
_LABEL: Final = b"age-encryption.org/v1/scrypt"
_ZERO_NONCE: Final = bytes(12)  # each salt gives a key that encrypts one message
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,3}")


class ScryptRecipient:
    """A passphrase to encrypt to; always alone in its file.

    Args:
        passphrase: its UTF-8 bytes.
        work_factor: log2 of scrypt's N.
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
        """Wrap under a key stretched from the passphrase and a fresh salt."""
        salt = os.urandom(_SALT_BYTES)
        key = _stretch(self._passphrase, salt, self._work_factor)
        body = ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, file_key, None)
        return Stanza(RecipientType.SCRYPT, (encode_base64(salt), str(self._work_factor)), body)


class ScryptIdentity:
    """A passphrase to decrypt with.

    Args:
        passphrase: its UTF-8 bytes.
        max_work_factor: files that ask for more are refused before any work is done.
    """

    def __init__(self, passphrase: bytes, *, max_work_factor: int = MAX_WORK_FACTOR) -> None:
        self._passphrase = passphrase
        self._max_work_factor = max_work_factor

    def __repr__(self) -> str:
        return "<ScryptIdentity>"

    def __str__(self) -> str:
        return self._passphrase.decode()

    def recipient(self) -> ScryptRecipient:
        """The same passphrase, to encrypt to."""
        return ScryptRecipient(self._passphrase)

    def destroy(self) -> None:
        """Forget the passphrase; its bytes are immutable, so the memory is only given back."""
        self._passphrase = b""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """The file key, if the passphrase is right; see `Identity`."""
        for stanza in stanzas:
            if stanza.type == RecipientType.SCRYPT:
                return self._open(stanza)
        return None

    def _open(self, stanza: Stanza) -> bytes | None:
        if len(stanza.arguments) != 2:
            raise header_invalid("scrypt stanza: arguments", 2, len(stanza.arguments))
        salt = decode_base64(stanza.arguments[0], _SALT_BYTES, "scrypt stanza: salt")
        work_factor = self._read_work_factor(stanza.arguments[1])
        body = stanza.wrapped_file_key()
        try:
            return ChaCha20Poly1305(_stretch(self._passphrase, salt, work_factor)).decrypt(_ZERO_NONCE, body, None)
        except InvalidTag:
            return None

    def _read_work_factor(self, text: str) -> int:
        if not _NUMBER.fullmatch(text):
            raise header_invalid("scrypt stanza: the work factor is not a plain decimal number")
        if int(text) > self._max_work_factor:
            raise header_invalid("scrypt stanza: work factor", f"at most {self._max_work_factor}", int(text))
        return int(text)


def _stretch(passphrase: bytes, salt: bytes, work_factor: int) -> bytes:
    return Scrypt(salt=_LABEL + salt, length=32, n=1 << work_factor, r=8, p=1).derive(passphrase)
