"""Packing: rows share a bin of up to `data.max_length` tokens, so that optimizer steps are about equally large.

Only which rows share a bin is decided here. Within a bin each row keeps its own positions and attends to itself
alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Puts rows into bins: the longest first, each into the fullest bin that has room for it.

    Rows of equal length keep their order, so the result depends on the lengths alone. Needs at most 11/9 of the
    smallest possible number of bins, plus four (D. S. Johnson, 1973).

    Args:
        lengths: tokens of each row; none above `capacity`.
        capacity: tokens of a bin.

    Returns:
        For each bin the indices of its rows, the longest first.
    """
    bins: list[list[int]] = []
    # Bins by their free space in tokens. A search over the bins would take quadratic time. There are at most
    # `capacity` different amounts of free space, a few hundred even for millions of rows, so a binary search over
    # the amounts is fast.
    bins_by_space: defaultdict[int, list[int]] = defaultdict(list)
    amounts: list[int] = []  # the keys of `bins_by_space` that have bins, sorted
    # `sorted` is stable, also in reverse: rows of equal length keep their order.
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        # The fullest bin with room is one with the first amount that is not below the row's length.
        index = bisect_left(amounts, lengths[row])
        if index == len(amounts):
            number, space = len(bins), capacity
            bins.append([])
        else:
            space = amounts[index]
            number = bins_by_space[space].pop()
            if not bins_by_space[space]:
                del amounts[index]
        bins[number].append(row)
        space -= lengths[row]
        if space > 0:  # a full bin is never looked at again
            if not bins_by_space[space]:
                insort(amounts, space)
            bins_by_space[space].append(number)
    return bins
