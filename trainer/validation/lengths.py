"""Quantiles and a histogram of token lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Returns minimum, quantiles (nearest rank) and maximum by name; zeros for an empty sequence."""
    ordered = sorted(lengths) or [0]
    last = len(ordered) - 1
    middle = {
        f"p{round(100 * quantile):02d}": ordered[round(quantile * last)] for quantile in QUANTILES
    }
    return {"min": ordered[0], **middle, "max": ordered[-1]}


def histogram(lengths: Sequence[int], bins: int = 12) -> list[tuple[int, int, int]]:
    """Counts the lengths in at most `bins` ranges of equal width; returns (first, last, count) of each range."""
    if not lengths:
        return []
    # -(-a // b) is a / b rounded up. The last edge is beyond `high`, so that every length is in a range.
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // bins)
    edges = list(range(low, high + width + 1, width))
    counts = [0] * (len(edges) - 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    return [
        (first, end - 1, count) for (first, end), count in zip(pairwise(edges), counts, strict=True)
    ]
