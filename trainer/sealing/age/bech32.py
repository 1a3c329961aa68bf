"""Bech32 (BIP 173) without its limit of 90 characters: the text form of age keys.

Libraries for Bech32 keep the limit of 90 characters; hybrid recipients have 1,959. Alphabet, generator and
checksum are those of BIP 173, "Bech32".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH: Final = 6


def bech32_encode(prefix: str, data: bytes) -> str:
    """Returns the lower-case Bech32 text of `data` under a lower-case human-readable prefix."""
    values = _regroup_bits(data, 8, 5, pad=True)
    # The checksum is the six values that make the polynomial of prefix, data and checksum leave the remainder 1.
    checksum = _polymod([*_expand_prefix(prefix), *values, *bytes(_CHECKSUM_LENGTH)]) ^ 1
    values += [checksum >> 5 * (5 - place) & 31 for place in range(_CHECKSUM_LENGTH)]
    return f"{prefix}1{''.join(_ALPHABET[value] for value in values)}"


def bech32_decode(prefix: str, text: str) -> bytes:
    """Returns the bytes that `bech32_encode` made `text` from.

    Raises:
        ValueError: another prefix, a character outside the alphabet, a wrong checksum or wrong padding. The
            message quotes no part of `text`, which may be a secret key.
    """
    # The last 1 is the separator: the alphabet has none, a prefix may (BIP 173).
    found_prefix, separator, encoded = text.rpartition("1")
    if not separator or found_prefix != prefix:
        raise ValueError(f"does not start with {prefix}1")
    if len(encoded) < _CHECKSUM_LENGTH or not set(encoded) <= _VALUES.keys():
        raise ValueError("has a character that Bech32 does not use, or is too short")
    values = [_VALUES[character] for character in encoded]
    if _polymod([*_expand_prefix(prefix), *values]) != 1:
        raise ValueError("has a wrong checksum")
    return bytes(_regroup_bits(values[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _expand_prefix(prefix: str) -> list[int]:
    """Returns the prefix as 5-bit values: the high bits of each character, a zero, the low bits of each."""
    codes = prefix.encode("ascii")
    return [code >> 5 for code in codes] + [0] + [code & 31 for code in codes]


def _polymod(values: Iterable[int]) -> int:
    """Returns the remainder of a polynomial over GF(32), with these coefficients, by the generator of BIP 173.

    The remainder's six 5-bit coefficients are packed into 30 bits.
    """
    remainder = 1
    for value in values:
        # remainder · x + value; the coefficient of x^6, `top`, is then removed by adding top · generator.
        top = remainder >> 25
        remainder = (remainder & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate(_GENERATOR):
            if top >> bit & 1:
                remainder ^= term
    return remainder


def _regroup_bits(values: Iterable[int], from_width: int, to_width: int, *, pad: bool) -> list[int]:
    """Regroups a sequence of `from_width`-bit values into `to_width`-bit values, most significant bit first.

    Args:
        values: numbers below `2 ** from_width`.
        from_width: bits of each input value.
        to_width: bits of each output value.
        pad: fill the last value with zero bits. Without it, the bits left over must be fewer than an input value
            has, and zero.

    Raises:
        ValueError: the bits left over are too many or not zero.
    """
    result, accumulator, bits = [], 0, 0
    for value in values:
        # At most 12 bits are pending: 4 and a new 8 when encoding, 7 and a new 5 when decoding.
        accumulator = (accumulator << from_width | value) & 0xFFF
        bits += from_width
        while bits >= to_width:
            bits -= to_width
            result.append(accumulator >> bits & (1 << to_width) - 1)
    remaining = accumulator & (1 << bits) - 1
    if pad and bits:
        result.append(remaining << to_width - bits)
    elif not pad and (bits >= from_width or remaining):
        raise ValueError("has wrong padding")
    return result
