"""Stanzas: how a header wraps the file key for one recipient, and the base64 they are written in."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from trainer.errors import ErrorCode, SealingError

FILE_KEY_BYTES: Final = 16
WRAPPED_KEY_BYTES: Final = FILE_KEY_BYTES + 16
"""A file key and its authentication tag: the body of every stanza of the types known here."""

COLUMNS: Final = 64


@dataclass(frozen=True)
class Stanza:
    """One wrapping of the file key: a type, its arguments, and a body.

    Args:
        type: such as `X25519`; case matters.
        arguments: visible ASCII words.
        body: raw bytes.
    """

    type: str
    arguments: tuple[str, ...]
    body: bytes

    def encode(self) -> bytes:
        """The stanza as its lines in a header; the last line of a body is always shorter than 64 columns."""
        text = encode_base64(self.body)
        lines = [text[start : start + COLUMNS] for start in range(0, len(text) + 1, COLUMNS)]
        return "".join(f"{line}\n" for line in (" ".join(("->", self.type, *self.arguments)), *lines)).encode()

    def single_argument(self, size: int) -> bytes:
        """The stanza's one argument as `size` raw bytes.

        Raises:
            SealingError: none or several arguments, not canonical base64, or another size.
        """
        if len(self.arguments) != 1:
            raise header_invalid(f"{self.type} stanza: arguments", 1, len(self.arguments))
        return decode_base64(self.arguments[0], size, f"{self.type} stanza: argument")

    def wrapped_file_key(self) -> bytes:
        """The body, once it is known to be a wrapped 16-byte file key (a longer one would allow key mix-ups).

        Raises:
            SealingError: another length.
        """
        if len(self.body) != WRAPPED_KEY_BYTES:
            raise header_invalid(f"{self.type} stanza: bytes of the body", WRAPPED_KEY_BYTES, len(self.body))
        return self.body


def header_invalid(what: str, expected: object = None, found: object = None) -> SealingError:
    """The error of a header that does not follow the format."""
    return SealingError(ErrorCode.HEADER_INVALID, f"age header: {what}", expected=expected, found=found)


def encode_base64(data: bytes) -> str:
    """Standard base64 without padding."""
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64(text: str, size: int | None, what: str) -> bytes:
    """Decode unpadded base64 that has one spelling only.

    Args:
        text: ASCII.
        size: demanded number of bytes; None admits any.
        what: what is being decoded, for the error.

    Raises:
        SealingError: padded, not canonical, a foreign character, or another size.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise header_invalid(f"{what}: not base64") from None
    if encode_base64(data) != text:  # also catches padding and bits set beyond the last byte
        raise header_invalid(f"{what}: base64 is not canonical")
    if size is not None and len(data) != size:
        raise header_invalid(f"{what}: bytes", size, len(data))
    return data
