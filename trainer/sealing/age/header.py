"""The header of an age file: the file key wrapped for each recipient, authenticated by a MAC under that key.

Source: c2sp.org/age, "Header". Each header has one encoding; any other is refused.

The MAC binds the stanzas to each other: someone who can unwrap the file key knows that no stanza was added,
removed or changed by anyone who does not have the file key. It does not say who wrote the file.
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
"""About 600 hybrid recipients; the format itself has no limit."""

_NONCE_BYTES: Final = 16
_MAC_BYTES: Final = 32
_STANZA_LINE: Final = re.compile(r"->((?: [\x21-\x7e]+)+)")


@dataclass(frozen=True)
class OpenedHeader:
    """The result of unwrapping a header.

    Args:
        payload_cipher: ChaCha20-Poly1305 under the payload key.
        size: bytes from the start of the file to the first chunk.
    """

    payload_cipher: ChaCha20Poly1305
    size: int


@dataclass(frozen=True)
class _ParsedHeader:
    """A header whose MAC has not been verified.

    Args:
        stanzas: one or more.
        authenticated: the bytes that the MAC covers: everything up to and including `---`.
        mac: 32 bytes.
        size: bytes of the header.
    """

    stanzas: tuple[Stanza, ...]
    authenticated: bytes
    mac: bytes
    size: int


def create_header(recipients: Sequence[Recipient]) -> tuple[bytes, ChaCha20Poly1305]:
    """Makes the header of a new file under a fresh file key.

    Returns:
        All bytes before the first chunk (header and payload nonce), and the cipher of the payload.

    Raises:
        UsageError: RECIPIENT_INVALID: no recipient, recipients of different types, or a passphrase with others.
    """
    _require_one_recipient_type(recipients)
    # Chunk nonces count from 0 in every file: two payloads under one key would reveal the XOR of their plaintexts.
    file_key, nonce = os.urandom(FILE_KEY_BYTES), os.urandom(_NONCE_BYTES)
    stanzas = b"".join(recipient.wrap(file_key).encode() for recipient in recipients)
    # The MAC covers the three hyphens, but not the space after them (c2sp.org/age, "Header MAC").
    authenticated = f"{VERSION_LINE}\n".encode() + stanzas + b"---"
    header = authenticated + f" {encode_base64(_compute_mac(file_key, authenticated))}\n".encode()
    if len(header) > MAX_HEADER_BYTES:  # `read_header` would refuse it
        raise UsageError(ErrorCode.RECIPIENT_INVALID, "too many recipients for one file")
    return header + nonce, _payload_cipher(file_key, nonce)


def read_header(source: BinaryIO, identities: Sequence[Identity]) -> OpenedHeader:
    """Reads a header, unwraps the file key and verifies the MAC; leaves `source` at the first chunk.

    Args:
        source: an age file, from its start.
        identities: tried in turn.

    Raises:
        SealingError: HEADER_INVALID, NO_IDENTITY_MATCH, or HEADER_MAC if the header was changed.
    """
    header = _parse_header(source)
    file_key = _unwrap_file_key(header.stanzas, identities)
    # Nothing derived from the file key is used before the MAC holds: a stanza alone does not bind the others.
    if not hmac.compare_digest(_compute_mac(file_key, header.authenticated), header.mac):
        raise SealingError(ErrorCode.HEADER_MAC, "age header: it was changed after it was written")
    # The MAC does not cover the nonce. A changed one gives another payload key, and no chunk authenticates.
    nonce = source.read(_NONCE_BYTES)
    if len(nonce) != _NONCE_BYTES:
        raise header_invalid("bytes of the payload nonce", _NONCE_BYTES, len(nonce))
    return OpenedHeader(_payload_cipher(file_key, nonce), header.size + _NONCE_BYTES)


def count_stanzas(source: BinaryIO) -> int:
    """Returns the number of stanzas in the header of an age file, read from its start; verifies nothing.

    Raises:
        SealingError: HEADER_INVALID.
    """
    return len(_parse_header(source).stanzas)


def _require_one_recipient_type(recipients: Sequence[Recipient]) -> None:
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


def _unwrap_file_key(stanzas: Sequence[Stanza], identities: Sequence[Identity]) -> bytes:
    # A passphrase authenticates the writer of a file only if nobody else can unwrap the file key. So the format
    # forbids a scrypt stanza among others.
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


def _parse_header(source: BinaryIO) -> _ParsedHeader:
    lines = _HeaderLines(source)
    if next(lines) != VERSION_LINE:
        raise header_invalid("the first line does not name age version 1")
    stanzas = []
    while match := _STANZA_LINE.fullmatch(line := next(lines)):
        stanza_type, *arguments = match[1][1:].split(" ")
        stanzas.append(Stanza(stanza_type, tuple(arguments), _parse_stanza_body(lines)))
    if not stanzas:
        raise header_invalid("no stanza")
    if not line.startswith("--- "):
        raise header_invalid("a line is neither a stanza nor the MAC")
    mac = decode_base64(line[4:], _MAC_BYTES, "MAC")
    # The MAC line and its line feed replaced.
    authenticated = bytes(lines.consumed[: -len(line) - 1]) + b"---"
    return _ParsedHeader(tuple(stanzas), authenticated, mac, len(lines.consumed))


def _parse_stanza_body(lines: Iterator[str]) -> bytes:
    """Reads lines of 64 columns up to the first shorter one, which ends the body and may be empty."""
    text = ""
    for line in lines:
        if len(line) > COLUMNS:
            raise header_invalid("columns of a stanza's line", f"at most {COLUMNS}", len(line))
        text += line
        if len(line) < COLUMNS:
            break
    return decode_base64(text, None, "stanza body")


class _HeaderLines(Iterator[str]):
    """Iterates over the lines of a header, without line feeds, and keeps the bytes for the MAC.

    Attributes:
        consumed: all bytes read so far; at most `MAX_HEADER_BYTES`.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.consumed = bytearray()

    def __next__(self) -> str:
        # The limit bounds the memory that a file without line feeds can take.
        line = self._source.readline(MAX_HEADER_BYTES - len(self.consumed))
        self.consumed += line
        if not line.endswith(b"\n"):
            is_too_long = len(self.consumed) >= MAX_HEADER_BYTES
            raise header_invalid("it is too long" if is_too_long else "the file ends within it")
        try:
            return line[:-1].decode("ascii")
        except UnicodeDecodeError:
            raise header_invalid("a line is not ASCII") from None


def _compute_mac(file_key: bytes, authenticated: bytes) -> bytes:
    """Returns HMAC-SHA256(key = HKDF-SHA256(file key, salt = "", info = "header"), authenticated bytes)."""
    with wiped(hkdf_sha256(file_key, b"", b"header")) as key:
        return hmac.digest(key, authenticated, "sha256")


def _payload_cipher(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    """Returns ChaCha20-Poly1305 under HKDF-SHA256(file key, salt = nonce, info = "payload")."""
    with wiped(hkdf_sha256(file_key, nonce, b"payload")) as key:
        return ChaCha20Poly1305(key)  # copies the key
