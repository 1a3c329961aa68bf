"""Quantiles and a histogram of token lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Shortest, quantiles (nearest rank) and longest, by name; all zeros where there are none."""
    ordered = sorted(lengths) or [0]
    last = len(ordered) - 1
    middle = {f"p{round(100 * share):02d}": ordered[round(share * last)] for share in QUANTILES}
    return {"min": ordered[0], **middle, "max": ordered[-1]}


def histogram(lengths: Sequence[int], bins: int = 12) -> list[tuple[int, int, int]]:
    """How many lengths fall into each of at most `bins` ranges of equal width: (first, last, count)."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // bins)
    edges = list(range(low, high + width + 1, width))
    counts = [0] * (len(edges) - 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    return [(first, end - 1, count) for (first, end), count in zip(pairwise(edges), counts, strict=True)]
