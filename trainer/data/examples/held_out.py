"""Decides which rows are held out. Each row decides by a keyed hash of itself, so that no row moves another.

A split by position would not do: one row less would move hundreds of others between training and evaluation, and
differential privacy with respect to one row would promise nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from trainer.data.examples.example import Example

_DOMAIN: Final = b"confidential-trainer/split-by-seed/v1"


def seed_split_key(seed: int) -> bytes:
    """Returns the key of a job without a `privacy` section: 32 bytes, which everybody can compute."""
    return hashlib.sha256(b"%s\0%d" % (_DOMAIN, seed)).digest()


def row_digest(examples: Iterable[Example]) -> bytes:
    """Returns the SHA-256 of a row's token ids, by which equal rows are recognised and held out together.

    The slash separates examples, so that [1][2] and [1, 2] differ.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.ids)
        digest.update(b"/")
    return digest.digest()


def is_held_out(digest: bytes, fraction: float, key: bytes) -> bool:
    """Returns whether a row with this `row_digest` is held out: with probability `fraction` over the keys."""
    # P(word < fraction · 2^64) = fraction, up to 2^-64.
    word = int.from_bytes(hmac.digest(key, digest, "sha256")[:8], "big")
    return word < int(fraction * 2**64)
