"""Secret randomness for the noise and for the choice of each step's rows.

The seed of the job spec is public, and torch's generators are made for simulations: on a CPU they use only 32 bits
of a seed. Whoever knows or guesses the seed can compute the noise and subtract it, and the accountant's bound
assumes that nobody knows which rows a step drew. So every draw uses the keystream of ChaCha20 (RFC 8439) under a
new key from the operating system. No key is stored, and therefore no private run can be repeated or resumed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

_MANTISSA: Final = 53  # bits of a float64 that hold digits
_KEY_BYTES: Final = 32
_SUMMANDS: Final = 4

Entropy = Callable[[int], bytes]
"""Returns a given number of random bytes, as `os.urandom` does."""


class SecretRandom:
    """Draws uniform words, rows and normal numbers from cryptographically secure randomness.

    Args:
        entropy: source of the keys; tests pass a repeatable one.
    """

    def __init__(self, entropy: Entropy = os.urandom) -> None:
        self._entropy = entropy

    def words(self, count: int) -> np.ndarray:
        """Draws uniform words: uint64 [count]."""
        # Encrypting zeros gives the keystream. The nonce may be constant because no key is used twice.
        key = self._entropy(_KEY_BYTES)
        stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * count))
        return np.frombuffer(bytearray(stream), dtype=np.uint64)

    def choose(self, count: int, rate: float) -> list[int]:
        """Draws each of `count` indices independently with probability `rate` (Poisson sampling); may return none.

        The accountants' bound holds for this sampling only, not for shuffled epochs or batches of a fixed size.
        """
        if rate >= 1:
            return list(range(count))
        # P(word < rate · 2^64) = rate, rounded down to a multiple of 2^-64: never more often than accounted for.
        limit = np.uint64(int(rate * 2.0**64))
        return [int(index) for index in np.flatnonzero(self.words(count) < limit)]

    def normal(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Draws standard normal numbers: float64 of a shape.

        Each is the sum of four draws divided by 2, which has variance 4/4 = 1. The formula of a single draw
        reaches only some float64 values, so its low bits reveal which sums without noise are possible (Mironov,
        CCS 2012). The sum of several draws defeats this (Holohan and Braghin, arXiv:2107.10138, section 5.1).
        """
        draws = self._box_muller(_SUMMANDS * shape.numel(), device)
        return draws.view(_SUMMANDS, *shape).sum(0) / math.sqrt(_SUMMANDS)

    def _box_muller(self, count: int, device: torch.device) -> Tensor:
        """Draws independent standard normal numbers: float64 [count] (Box and Muller, 1958).

        With u, v uniform, r = √(-2 ln u) and φ = 2πv, the numbers r · cos φ and r · sin φ are independent and
        normal.
        """
        half = (count + 1) // 2
        words = torch.from_numpy(self.words(2 * half).view(np.int64)).to(device)
        # The low 53 bits of a word: as many as a float64 holds exactly.
        uniform = (words & (2**_MANTISSA - 1)).to(torch.float64)
        # u = (n + 1) / 2^53 lies in (0, 1]: ln 0 would be infinite.
        radius = (uniform[:half].add(1) * 2.0**-_MANTISSA).log_().mul_(-2).sqrt_()
        angle = uniform[half:] * (2 * math.pi * 2.0**-_MANTISSA)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
