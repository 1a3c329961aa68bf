"""Packing: rows share a bin of up to `data.max_length` tokens, so that optimizer steps are about equally large.

Only which rows share a bin is decided here. Within a bin each row keeps its own positions and attends to itself
alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put rows into bins: the longest first, each into the fullest bin that has room for it.

    Rows of equal length keep their order, so the result depends on the lengths alone. Needs at most 11/9 of the
    smallest possible number of bins, plus one (D. S. Johnson, 1973).

    Args:
        lengths: tokens of each row; none above `capacity`.
        capacity: tokens of a bin.

    Returns:
        For each bin the indices of its rows, the longest first.
    """
    bins: list[list[int]] = []
    free_space: list[int] = []  # of each bin, in tokens
    open_bins = _OpenBins()
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        number = open_bins.take_fullest(lengths[row])
        if number is None:
            number = len(bins)
            bins.append([])
            free_space.append(capacity)
        bins[number].append(row)
        free_space[number] -= lengths[row]
        open_bins.put(number, free_space[number])
    return bins


class _OpenBins:
    """Bins with free space, by how much they have.

    A search over the bins would take quadratic time. There are at most `capacity` different amounts of free space,
    a few hundred even for millions of rows, so a binary search over the amounts is fast.
    """

    def __init__(self) -> None:
        self._bins: defaultdict[int, list[int]] = defaultdict(list)
        self._amounts: list[int] = []  # the keys of `_bins`, sorted

    def take_fullest(self, length: int) -> int | None:
        """Remove and return the bin with the least free space that `length` tokens fit into; None without one."""
        index = bisect_left(self._amounts, length)
        if index == len(self._amounts):
            return None
        amount = self._amounts[index]
        number = self._bins[amount].pop()
        if not self._bins[amount]:
            del self._bins[amount], self._amounts[index]
        return number

    def put(self, number: int, amount: int) -> None:
        """Add a bin with an amount of free space; a full bin is dropped."""
        if amount <= 0:
            return
        if not self._bins[amount]:
            insort(self._amounts, amount)
        self._bins[amount].append(number)
