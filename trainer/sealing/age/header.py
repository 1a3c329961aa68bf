"""The header: wraps the file key for each recipient, and is authenticated under that key.

Source: C2SP `age.md`, "Header". There is one spelling for every header; any other is refused.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.sealing.age.identity import Identity, Recipient, RecipientType, hkdf_sha256
from trainer.sealing.age.stanza import (
    COLUMNS,
    FILE_KEY_BYTES,
    Stanza,
    decode_base64,
    encode_base64,
    header_invalid,
)
from trainer.sealing.wiping import wiped

VERSION_LINE: Final = "age-encryption.org/v1"
MAX_HEADER_BYTES: Final = 1 << 20
"""Room for some 600 hybrid recipients; the format itself sets no bound."""

_NONCE_BYTES: Final = 16
_MAC_BYTES: Final = 32
_STANZA_LINE: Final = re.compile(r"->((?: [\x21-\x7e]+)+)")


@dataclass(frozen=True)
class OpenedHeader:
    """What a header yields to someone who may read the file.

    Args:
        key: the payload's cipher.
        size: bytes from the start of the file to the first chunk.
    """

    key: ChaCha20Poly1305
    size: int


@dataclass(frozen=True)
class _Header:
    stanzas: tuple[Stanza, ...]
    covered: bytes  # what the MAC is over: all up to and including `---`
    mac: bytes
    size: int


def create_header(recipients: Sequence[Recipient]) -> tuple[bytes, ChaCha20Poly1305]:
    """Begin a file under a fresh file key.

    Returns:
        All bytes before the first chunk (header and payload nonce), and the payload's cipher.

    Raises:
        UsageError: no recipient, recipients of different recipient types, or a passphrase that is not alone.
    """
    _require_one_family(recipients)
    file_key, nonce = os.urandom(FILE_KEY_BYTES), os.urandom(_NONCE_BYTES)
    stanzas = b"".join(recipient.wrap(file_key).encode() for recipient in recipients)
    covered = f"{VERSION_LINE}\n".encode() + stanzas + b"---"
    header = covered + f" {encode_base64(_mac(file_key, covered))}\n".encode()
    if len(header) > MAX_HEADER_BYTES:
        raise UsageError(ErrorCode.RECIPIENT_INVALID, "too many recipients for one file")
    return header + nonce, _payload_key(file_key, nonce)


def read_header(source: BinaryIO, identities: Sequence[Identity]) -> OpenedHeader:
    """Read a file's header and leave `source` at its first chunk.

    Args:
        source: a buffered stream at the start of the file.
        identities: tried in turn.

    Raises:
        SealingError: HEADER_INVALID, NO_IDENTITY_MATCH, or HEADER_MAC where the header was changed.
    """
    header = _read(source)
    file_key = _unwrap(header.stanzas, identities)
    if not hmac.compare_digest(_mac(file_key, header.covered), header.mac):
        raise SealingError(ErrorCode.HEADER_MAC, "age header: it was changed after it was written")
    nonce = source.read(_NONCE_BYTES)
    if len(nonce) != _NONCE_BYTES:
        raise header_invalid("bytes of the payload nonce", _NONCE_BYTES, len(nonce))
    return OpenedHeader(_payload_key(file_key, nonce), header.size + _NONCE_BYTES)


def _require_one_family(recipients: Sequence[Recipient]) -> None:
    recipient_types = {recipient.recipient_type for recipient in recipients}
    if not recipient_types:
        raise UsageError(ErrorCode.RECIPIENT_INVALID, "no recipient to encrypt to")
    if len(recipient_types) > 1:
        raise UsageError(
            ErrorCode.RECIPIENT_INVALID,
            "recipients of different kinds in one file",
            expected="one kind",
            found=", ".join(sorted(recipient_types)),
            hint="one weaker recipient would take the post-quantum protection from all",
        )
    if RecipientType.SCRYPT in recipient_types and len(recipients) > 1:
        raise UsageError(ErrorCode.RECIPIENT_INVALID, "a passphrase must be the only recipient")


def _unwrap(stanzas: Sequence[Stanza], identities: Sequence[Identity]) -> bytes:
    # A passphrase beside other recipients could not tell who wrote the file; the format forbids it.
    if len(stanzas) > 1 and any(stanza.type == RecipientType.SCRYPT for stanza in stanzas):
        raise header_invalid("a scrypt stanza must be alone")
    for identity in identities:
        if (file_key := identity.unwrap(stanzas)) is not None:
            return file_key
    raise SealingError(
        ErrorCode.NO_IDENTITY_MATCH,
        "the file was not sealed to any of these identities",
        hint="a restarted job or a changed job spec has another recipient; check which one the file was sealed to",
    )


def _read(source: BinaryIO) -> _Header:
    lines = _Lines(source)
    if next(lines) != VERSION_LINE:
        raise header_invalid("the first line does not name age version 1")
    stanzas = []
    while match := _STANZA_LINE.fullmatch(line := next(lines)):
        type_, *arguments = match[1][1:].split(" ")
        stanzas.append(Stanza(type_, tuple(arguments), _read_body(lines)))
    if not stanzas:
        raise header_invalid("no stanza")
    if not line.startswith("--- "):
        raise header_invalid("a line is neither a stanza nor the MAC")
    mac = decode_base64(line[4:], _MAC_BYTES, "MAC")
    covered = bytes(lines.seen[: -len(line) - 1]) + b"---"
    return _Header(tuple(stanzas), covered, mac, len(lines.seen))


def _read_body(lines: Iterator[str]) -> bytes:
    text = ""
    for line in lines:
        if len(line) > COLUMNS:
            raise header_invalid("columns of a stanza's line", f"at most {COLUMNS}", len(line))
        text += line
        if len(line) < COLUMNS:
            break
    return decode_base64(text, None, "stanza body")


class _Lines(Iterator[str]):
    """Lines of a header without their line feed, as far as the bound allows; remembers what was read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.seen = bytearray()

    def __next__(self) -> str:
        line = self._source.readline(MAX_HEADER_BYTES - len(self.seen))
        self.seen += line
        if not line.endswith(b"\n"):
            raise header_invalid(
                "it is too long" if len(self.seen) >= MAX_HEADER_BYTES else "the file ends within it"
            )
        try:
            return line[:-1].decode("ascii")
        except UnicodeDecodeError:
            raise header_invalid("a line is not ASCII") from None


def _mac(file_key: bytes, covered: bytes) -> bytes:
    with wiped(hkdf_sha256(file_key, b"", b"header")) as key:
        return hmac.digest(key, covered, "sha256")


def _payload_key(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    with wiped(hkdf_sha256(file_key, nonce, b"payload")) as key:
        return ChaCha20Poly1305(key)  # has a copy of its own
