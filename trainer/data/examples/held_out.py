"""Decides which rows are held out. Each row decides by a keyed hash of itself, so that no row moves another.

A split by position would not do: one row less would move hundreds of others between training and evaluation, and
differential privacy with respect to one row would promise nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Iterable, Iterator, Sequence
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


def choose_evaluated(
    examples: Sequence[Example], most: int | None, *, seed: int, rows_per_unit: int = 1
) -> tuple[Example, ...]:
    """Returns the held-out examples that evaluations measure: all, or a part that is drawn once for the run.

    Args:
        examples: the held-out examples; those of a unit are adjacent.
        most: number of units at most (`train.max_eval_rows`); None for all.
        seed: decides which ones.
        rows_per_unit: 2 for pairs, else 1.
    """
    units = len(examples) // rows_per_unit
    if most is None or units <= most:
        return tuple(examples)
    # Not secret: a resumed run must measure the same rows, and add up their losses in the same order.
    chosen = sorted(random.Random(seed).sample(range(units), most))  # noqa: S311
    return tuple(
        examples[unit * rows_per_unit + row] for unit in chosen for row in range(rows_per_unit)
    )


def evaluated_warnings(units: int, most: int | None) -> Iterator[str]:
    """Yields a warning if only `most` of the held-out units are evaluated."""
    if most is not None and units > most:
        yield f"{most} of {units} held-out rows are evaluated (train.max_eval_rows); the others are not used"
