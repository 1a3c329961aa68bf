"""Keccak-256 as Ethereum uses it: SHA-3 with the padding that came before the standard.

Source: FIPS 202, section 3 (the permutation Keccak-f[1600]) and 4 (the sponge); the padding is that of the Keccak
submission, `0x01`, where SHA3-256 has `0x06`. It is written here because Python's `hashlib` has SHA-3 alone, and
the package that has both weighs more than the rest of the provider's cryptography; it serves a few short messages.
"""

from __future__ import annotations

from typing import Final

KECCAK_PADDING: Final = 0x01
RATE_BYTES: Final = 136
"""Bytes of the state that take in a block; the other 64 are twice the digest."""

_LANE: Final = (1 << 64) - 1
_ROUNDS: Final = 24


def keccak256(data: bytes, *, padding: int = KECCAK_PADDING) -> bytes:
    """Returns the 32 bytes of Keccak-256 of `data`.

    Args:
        data: the message.
        padding: the byte after it; 6 makes it SHA3-256.
    """
    # pad10*1: the padding byte, zeros, and the highest bit of the block's last byte.
    padded = bytearray(data) + bytes(RATE_BYTES - len(data) % RATE_BYTES)
    padded[len(data)] ^= padding
    padded[-1] ^= 0x80
    state = [0] * 25  # lane (x, y) of 64 bits, little endian, at x + 5 y
    for start in range(0, len(padded), RATE_BYTES):
        for lane in range(RATE_BYTES // 8):
            at = start + 8 * lane
            state[lane] ^= int.from_bytes(padded[at : at + 8], "little")
        state = _permute(state)
    return b"".join(lane.to_bytes(8, "little") for lane in state[:4])


def _permute(state: list[int]) -> list[int]:
    """Returns the state after the 24 rounds of Keccak-f[1600]."""
    register = 1
    for _ in range(_ROUNDS):
        # theta: each lane takes in the parity of the column before it, and of the one after it, rotated by one.
        columns = [
            state[x] ^ state[x + 5] ^ state[x + 10] ^ state[x + 15] ^ state[x + 20]
            for x in range(5)
        ]
        mixed = [columns[x - 1] ^ _rotate(columns[(x + 1) % 5], 1) for x in range(5)]
        state = [lane ^ mixed[at % 5] for at, lane in enumerate(state)]
        # rho and pi: lane t of the walk is rotated by the t-th triangular number, and moves to the next place.
        x, y, moving = 1, 0, state[1]
        for step in range(1, 25):
            x, y = y, (2 * x + 3 * y) % 5
            at = x + 5 * y
            moving, state[at] = state[at], _rotate(moving, step * (step + 1) // 2)
        # chi: the only step that is not linear.
        state = [
            lane ^ (~state[at - at % 5 + (at + 1) % 5] & state[at - at % 5 + (at + 2) % 5])
            for at, lane in enumerate(state)
        ]
        # iota: bits 2**j - 1 of the first lane, from the shift register x^8 + x^6 + x^5 + x^4 + 1.
        for j in range(7):
            state[0] ^= (register & 1) << ((1 << j) - 1)
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
    return state


def _rotate(lane: int, bits: int) -> int:
    bits %= 64
    return (lane << bits | lane >> (64 - bits)) & _LANE
