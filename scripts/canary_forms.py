"""Encodings under which a planted string may appear in a leak: text encodings, escapes, base64, hex, token ids."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

MIN_CHARACTERS: Final = 8
"""A shorter string occurs by chance."""

_MIN_NEEDLE: Final = 6
_MIN_TOKENS: Final = 4
_ENCODINGS: Final = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_BROKEN_BY: Final = b" \t\r\n:"
_INTEGERS: Final = (("int16", "<H", 1 << 16), ("int32", "<I", 1 << 32), ("int64", "<Q", 1 << 64))

Tokenize = Callable[[str], Sequence[int]]
"""Maps a text to token ids, without special tokens."""


@dataclass(frozen=True)
class Needle:
    """A byte string to search for, in lower case.

    Args:
        content: the bytes; without white space and colons if `broken`.
        canary: index of the canary that it encodes.
        form: name of the encoding.
        broken: search for it in data without white space and colons, to find wrapped base64 and spaced hex.
    """

    content: bytes
    canary: int
    form: str
    broken: bool = False


def squeeze(data: bytes) -> bytes:
    """Return `data` without white space and colons, which break long texts into lines and groups."""
    return data.translate(None, _BROKEN_BY)


def is_kept(byte: int) -> bool:
    """Return whether `squeeze` keeps a byte."""
    return byte not in _BROKEN_BY


def needles(canaries: Sequence[str | bytes], tokenize: Tokenize | None = None) -> list[Needle]:
    """Return all encodings of all canaries. Raw bytes (a key, a weight) have fewer encodings than a text.

    Raises:
        ValueError: a canary is so short that it occurs by chance.
    """
    found: dict[tuple[bytes, bool], Needle] = {}
    for index, canary in enumerate(canaries):
        if len(canary) < MIN_CHARACTERS:
            raise ValueError(f"canary {index} has fewer than {MIN_CHARACTERS} characters")
        for form, content, textual in _forms(canary, tokenize):
            _add(found, Needle(content.lower(), index, form))
            if textual:
                _add(
                    found, Needle(squeeze(content.lower()), index, f"{form} in pieces", broken=True)
                )
    return list(found.values())


def _add(found: dict[tuple[bytes, bool], Needle], needle: Needle) -> None:
    if len(needle.content) >= _MIN_NEEDLE:
        found.setdefault((needle.content, needle.broken), needle)


def _forms(canary: str | bytes, tokenize: Tokenize | None) -> Iterator[tuple[str, bytes, bool]]:
    """Yield name, bytes, and whether the encoding is a text that may be broken into lines or groups."""
    if isinstance(canary, bytes):
        yield "bytes", canary, False
        yield from _encoded("bytes", canary)
        return
    for encoding in _ENCODINGS:
        raw = canary.encode(encoding)
        yield encoding, raw, encoding == "utf-8"
        yield from _encoded(encoding, raw)
    # `bytes.lower` in the search folds ASCII letters only.
    yield (
        "upper case",
        canary.upper().encode(),
        True,
    )
    yield "reversed", canary[::-1].encode(), False
    yield from _escaped(canary)
    if tokenize is not None:
        yield from _token_ids(canary, tokenize)


def _encoded(name: str, raw: bytes) -> Iterator[tuple[str, bytes, bool]]:
    yield f"hex of {name}", raw.hex().encode(), True
    for shift in range(3):
        text = _base64_at(raw, shift)
        yield f"base64 of {name}", text, True
        yield f"base64url of {name}", text.translate(bytes.maketrans(b"+/", b"-_")), True


def _base64_at(raw: bytes, shift: int) -> bytes:
    """Return the base64 digits that encode only `raw` when `shift` unknown bytes precede it.

    A digit encodes 6 bits. The first digits mix bits of the unknown bytes, and the last one bits of what follows.
    """
    text = base64.b64encode(bytes(shift) + raw)
    complete_digits = (shift + len(raw)) * 8 // 6
    return text[-(-shift * 8 // 6) : complete_digits]


def _escaped(canary: str) -> Iterator[tuple[str, bytes, bool]]:
    raw = canary.encode()
    yield "JSON string", json.dumps(canary)[1:-1].encode(), True
    yield "Python string", ascii(canary)[1:-1].encode(), True
    yield "Python bytes", repr(raw)[2:-1].encode(), True
    yield "URL", quote(canary, safe="").encode(), True
    yield "percent-encoded", b"".join(b"%%%02x" % byte for byte in raw), True
    yield "\\u escapes", b"".join(b"\\u%04x" % unit for unit in _utf16_units(canary)), True
    yield "\\x escapes", b"".join(b"\\x%02x" % byte for byte in raw), True
    yield "character references", b"".join(b"&#%d;" % ord(letter) for letter in canary), True


def _utf16_units(text: str) -> tuple[int, ...]:
    raw = text.encode("utf-16-le")
    return struct.unpack(f"<{len(raw) // 2}H", raw)


def _token_ids(canary: str, tokenize: Tokenize) -> Iterator[tuple[str, bytes, bool]]:
    for before in ("", " ", "\n"):
        ids = tokenize(before + canary)
        inner = list(ids)[1:-1]  # the first and last token may merge with text around the canary
        if len(inner) < _MIN_TOKENS:
            continue
        for name, layout, limit in _INTEGERS:
            if max(inner) < limit:
                yield (
                    f"token ids as {name}",
                    b"".join(struct.pack(layout, token) for token in inner),
                    False,
                )
        for separator in (",", " "):
            yield "token ids in decimal", separator.join(map(str, inner)).encode(), True
