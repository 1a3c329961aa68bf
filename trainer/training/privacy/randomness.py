"""Randomness that nobody outside the VM can know: for the noise, and for the choice of each step's rows.

The job spec's seed is public, and torch's generators are made for simulations: whoever knows their seed, or
guesses the 32 bits that the CPU's takes of it, can subtract the noise. So every draw is ChaCha20's keystream
(RFC 8439) under a key of its own from the operating system. It is never written down, and no run can be repeated.
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

_MANTISSA: Final = 53
_KEY_BYTES: Final = 32
_SUMMANDS: Final = 4

Entropy = Callable[[int], bytes]
"""So many random bytes; `os.urandom`."""


class SecretRandom:
    """Draws from the operating system's randomness.

    Args:
        entropy: where keys come from; a test may put something repeatable there.
    """

    def __init__(self, entropy: Entropy = os.urandom) -> None:
        self._entropy = entropy

    def words(self, count: int) -> np.ndarray:
        """uint64 [count], uniform."""
        key = self._entropy(_KEY_BYTES)
        stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * count))
        return np.frombuffer(bytearray(stream), dtype=np.uint64)

    def choose(self, count: int, rate: float) -> list[int]:
        """Poisson sampling: each of `count` indices by itself with probability `rate`; may be none."""
        if rate >= 1:
            return list(range(count))
        limit = np.uint64(int(rate * 2.0**64))
        return [int(index) for index in np.flatnonzero(self.words(count) < limit)]

    def normal(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Standard normal float64.

        Half the sum of four draws: the low bits of a single one give away which of the representable numbers it
        was made from (Mironov, CCS 2012; Holohan and Braghin, arXiv:2107.10138, section 5.1).
        """
        draws = self._box_muller(_SUMMANDS * shape.numel(), device)
        return draws.view(_SUMMANDS, *shape).sum(0) / math.sqrt(_SUMMANDS)

    def _box_muller(self, count: int, device: torch.device) -> Tensor:
        """Independent standard normal numbers (Box and Muller, 1958), from uniform ones of 53 bits each."""
        half = (count + 1) // 2
        words = torch.from_numpy(self.words(2 * half).view(np.int64)).to(device)
        uniform = (words & (2**_MANTISSA - 1)).to(torch.float64)
        radius = (uniform[:half].add(1) * 2.0**-_MANTISSA).log_().mul_(-2).sqrt_()
        angle = uniform[half:] * (2 * math.pi * 2.0**-_MANTISSA)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
