"""Packing: rows share a bin of `data.max_length` tokens, so that every optimizer step has about as many of them.

Only who belongs together is decided here. Within a bin each row keeps its own positions and sees itself alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put rows into bins: the longest first, each into the fullest bin that has room for it.

    Rows of one length keep their order, so the result depends on the lengths alone. At most 11/9 of the fewest
    possible bins, plus one (D. S. Johnson, 1973).

    Args:
        lengths: tokens of each row; none above `capacity`.
        capacity: tokens of a bin.

    Returns:
        For each bin the indices of its rows.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    by_room: defaultdict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # the keys of `by_room`, sorted: a few hundred even for millions of rows
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        number = _take(by_room, rooms, lengths[row])
        if number is None:
            number = len(bins)
            bins.append([])
            free.append(capacity)
        bins[number].append(row)
        free[number] -= lengths[row]
        _put(by_room, rooms, free[number], number)
    return bins


def _take(by_room: dict[int, list[int]], rooms: list[int], length: int) -> int | None:
    """The fullest bin that has room; it leaves the table."""
    place = bisect_left(rooms, length)
    if place == len(rooms):
        return None
    room = rooms[place]
    number = by_room[room].pop()
    if not by_room[room]:
        del by_room[room], rooms[place]
    return number


def _put(by_room: dict[int, list[int]], rooms: list[int], room: int, number: int) -> None:
    if room <= 0:
        return
    if not by_room[room]:
        insort(rooms, room)
    by_room[room].append(number)
