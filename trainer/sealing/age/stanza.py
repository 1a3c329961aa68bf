"""Stanzas: the parts of a header that hold the file key for one recipient each, and their base64.

Source: c2sp.org/age, "Recipient stanza" and "Header".
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from trainer.errors import ErrorCode, SealingError

FILE_KEY_BYTES: Final = 16
WRAPPED_FILE_KEY_BYTES: Final = FILE_KEY_BYTES + 16
"""An encrypted file key and its authentication tag: the body of every recipient type supported here."""

COLUMNS: Final = 64


@dataclass(frozen=True)
class Stanza:
    """A file key, encrypted to one recipient.

    Args:
        type: recipient type, such as `X25519`; case-sensitive.
        arguments: words of visible ASCII characters.
        body: raw bytes.
    """

    type: str
    arguments: tuple[str, ...]
    body: bytes

    def encode(self) -> bytes:
        """Returns the lines of the stanza in a header.

        The last line of a body is always shorter than 64 columns, so that a reader knows where the body ends;
        after a full line it is empty.
        """
        text = encode_base64(self.body)
        body_lines = [text[start : start + COLUMNS] for start in range(0, len(text) + 1, COLUMNS)]
        first_line = " ".join(("->", self.type, *self.arguments))
        return "".join(f"{line}\n" for line in (first_line, *body_lines)).encode()

    def single_argument(self, size: int) -> bytes:
        """Returns the stanza's only argument, decoded, which must have `size` bytes.

        Raises:
            SealingError: HEADER_INVALID: no argument, several, base64 that is not canonical, or another size.
        """
        if len(self.arguments) != 1:
            raise header_invalid(f"{self.type} stanza: arguments", 1, len(self.arguments))
        return decode_base64(self.arguments[0], size, f"{self.type} stanza: argument")

    def wrapped_file_key(self) -> bytes:
        """Returns the body, which must have the size of a wrapped 16-byte file key.

        The size is checked before decryption: an AEAD that does not commit to its key lets an attacker make one
        longer ciphertext that opens under several keys, and so test many keys with one file.

        Raises:
            SealingError: HEADER_INVALID: another size.
        """
        if len(self.body) != WRAPPED_FILE_KEY_BYTES:
            raise header_invalid(
                f"{self.type} stanza: bytes of the body", WRAPPED_FILE_KEY_BYTES, len(self.body)
            )
        return self.body


def header_invalid(reason: str, expected: object = None, found: object = None) -> SealingError:
    """Makes the error for a header that does not follow the format."""
    return SealingError(
        ErrorCode.HEADER_INVALID, f"age header: {reason}", expected=expected, found=found
    )


def encode_base64(data: bytes) -> str:
    """Returns standard base64 (RFC 4648, section 4) without padding."""
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64(text: str, size: int | None, field: str) -> bytes:
    """Decodes unpadded canonical base64.

    Args:
        text: ASCII.
        size: required number of bytes; None allows any.
        field: name of what is decoded, for the error.

    Raises:
        SealingError: HEADER_INVALID: padding, bits set after the last byte, a character outside the alphabet, or
            another size.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise header_invalid(f"{field}: not base64") from None
    if encode_base64(data) != text:  # also catches padding and bits set after the last byte
        raise header_invalid(f"{field}: base64 is not canonical")
    if size is not None and len(data) != size:
        raise header_invalid(f"{field}: bytes", size, len(data))
    return data
