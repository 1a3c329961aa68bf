"""The header of an age file: the file key wrapped for each recipient, authenticated by a MAC under that key.

Source: c2sp.org/age, "Header". Each header has one encoding; any other is refused.

The MAC binds the stanzas to each other: someone who can unwrap the file key knows that no stanza was added,
removed or changed by anyone who does not have the file key. It does not say who wrote the file.
"""

from __future__ import annotations

import hmac
import io
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


def new_file_key() -> bytes:
    """Returns a random file key, 16 bytes, for one file."""
    return os.urandom(FILE_KEY_BYTES)


def create_header(
    recipients: Sequence[Recipient], file_key: bytes | None = None
) -> tuple[bytes, ChaCha20Poly1305]:
    """Makes the header of a new file.

    Args:
        recipients: of one recipient type.
        file_key: from `new_file_key`, for a caller who wraps it for others as well; None makes one.

    Returns:
        All bytes before the first chunk (header and payload nonce), and the cipher of the payload.

    Raises:
        UsageError: RECIPIENT_INVALID: no recipient, recipients of different types, or a passphrase with others.
    """
    file_key = file_key or new_file_key()
    # Chunk nonces count from 0 in every file: two payloads under one key would reveal the XOR of their plaintexts.
    nonce = os.urandom(_NONCE_BYTES)
    return wrap_file_key(file_key, recipients) + nonce, _payload_cipher(file_key, nonce)


def wrap_file_key(file_key: bytes, recipients: Sequence[Recipient]) -> bytes:
    """Returns a header, without payload nonce: with it these recipients can open the file of this key.

    The MAC is keyed by the file key, and the payload key comes from the file key and the nonce after the header.
    So a file stays valid, with the same payload, when its header is replaced by another one of its file key.

    Raises:
        UsageError: RECIPIENT_INVALID: no recipient, recipients of different types, or a passphrase with others.
    """
    _require_one_recipient_type(recipients)
    stanzas = b"".join(recipient.wrap(file_key).encode() for recipient in recipients)
    # The MAC covers the three hyphens, but not the space after them (c2sp.org/age, "Header MAC").
    authenticated = f"{VERSION_LINE}\n".encode() + stanzas + b"---"
    header = authenticated + f" {encode_base64(_compute_mac(file_key, authenticated))}\n".encode()
    if len(header) > MAX_HEADER_BYTES:  # `read_header` would refuse it
        raise UsageError(ErrorCode.RECIPIENT_INVALID, "too many recipients for one file")
    return header


def rewrap_header(
    header: bytes, identities: Sequence[Identity], recipients: Sequence[Recipient]
) -> bytes:
    """Returns another header of the same file, for other recipients.

    Args:
        header: as `wrap_file_key` returns it.
        identities: tried in turn; one of them must open it.
        recipients: of one recipient type.

    Raises:
        SealingError: HEADER_INVALID, NO_IDENTITY_MATCH, HEADER_MAC.
        UsageError: RECIPIENT_INVALID.
    """
    return wrap_file_key(_open_file_key(_parse_detached(header), identities), recipients)


def read_header(
    source: BinaryIO, identities: Sequence[Identity], replacement: bytes | None = None
) -> OpenedHeader:
    """Reads a header, unwraps the file key and verifies the MAC; leaves `source` at the first chunk.

    Args:
        source: an age file, from its start.
        identities: tried in turn.
        replacement: a header that counts in place of the file's own, whose MAC must hold under the same file key;
            None: the file's own counts.

    Raises:
        SealingError: HEADER_INVALID, NO_IDENTITY_MATCH, or HEADER_MAC: a header was changed, or is another file's.
    """
    header = _parse_header(source)
    if replacement is None:
        file_key = _open_file_key(header, identities)
    else:
        file_key = _open_file_key(_parse_detached(replacement), identities)
        _require_mac(header, file_key)
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


def _open_file_key(header: _ParsedHeader, identities: Sequence[Identity]) -> bytes:
    """Returns the file key of a header. Nothing derived from it is used before the MAC holds."""
    file_key = _unwrap_file_key(header.stanzas, identities)
    _require_mac(header, file_key)  # a stanza alone does not bind the others
    return file_key


def _require_mac(header: _ParsedHeader, file_key: bytes) -> None:
    if not hmac.compare_digest(_compute_mac(file_key, header.authenticated), header.mac):
        raise SealingError(ErrorCode.HEADER_MAC, "age header: it was changed after it was written")


def _parse_detached(header: bytes) -> _ParsedHeader:
    parsed = _parse_header(io.BytesIO(header))
    if parsed.size != len(header):
        raise header_invalid("something follows it")
    return parsed


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
