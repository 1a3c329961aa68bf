"""Bech32 (BIP 173) without its limit of 90 characters, as age writes keys.

Source of alphabet, generator and checksum: BIP 173. Hybrid recipients have 1,959 characters, which is why no
ready-made library serves: those hold to the limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH: Final = 6


def bech32_encode(prefix: str, data: bytes) -> str:
    """Lower-case text of `data` under a lower-case human-readable prefix."""
    values = _regroup(data, 8, 5, pad=True)
    checksum = _polymod([*_expand(prefix), *values, *bytes(_CHECKSUM_LENGTH)]) ^ 1
    values += [checksum >> 5 * (5 - place) & 31 for place in range(_CHECKSUM_LENGTH)]
    return f"{prefix}1{''.join(_ALPHABET[value] for value in values)}"


def bech32_decode(prefix: str, text: str) -> bytes:
    """Bytes that `bech32_encode` made `text` from.

    Raises:
        ValueError: another prefix, a foreign character, a wrong checksum or padding. Quotes no part of `text`.
    """
    found, separator, rest = text.rpartition("1")
    if not separator or found != prefix:
        raise ValueError(f"does not start with {prefix}1")
    if len(rest) < _CHECKSUM_LENGTH or not set(rest) <= _VALUES.keys():
        raise ValueError("has a character that Bech32 does not use, or is too short")
    values = [_VALUES[character] for character in rest]
    if _polymod([*_expand(prefix), *values]) != 1:
        raise ValueError("has a wrong checksum")
    return bytes(_regroup(values[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _expand(prefix: str) -> list[int]:
    codes = prefix.encode("ascii")
    return [code >> 5 for code in codes] + [0] + [code & 31 for code in codes]


def _polymod(values: Iterable[int]) -> int:
    state = 1
    for value in values:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate(_GENERATOR):
            if top >> bit & 1:
                state ^= term
    return state


def _regroup(values: Iterable[int], width: int, wanted: int, *, pad: bool) -> list[int]:
    """Regroup `width`-bit values into `wanted`-bit ones; unless `pad`, only a few zero bits may be left."""
    result, held, bits = [], 0, 0
    for value in values:
        held = (held << width | value) & 0xFFF
        bits += width
        while bits >= wanted:
            bits -= wanted
            result.append(held >> bits & (1 << wanted) - 1)
    rest = held & (1 << bits) - 1
    if pad and bits:
        result.append(rest << wanted - bits)
    elif not pad and (bits >= width or rest):
        raise ValueError("has wrong padding")
    return result
