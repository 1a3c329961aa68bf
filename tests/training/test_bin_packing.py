"""Bins hold every row once, never too much, and about as few of them as can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.training.bin_packing import best_fit_decreasing

CAPACITY = 100


@given(lengths=st.lists(st.integers(1, CAPACITY), max_size=200))
def test_every_row_is_in_one_bin_that_holds_it(lengths: list[int]) -> None:
    bins = best_fit_decreasing(lengths, CAPACITY)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= CAPACITY for rows in bins)
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // CAPACITY) * 2 + 1
    half_empty = sum(sum(lengths[row] for row in rows) <= CAPACITY // 2 for rows in bins)
    assert half_empty <= 1  # two of them would have been one


def test_the_longest_come_first_and_fill_the_fullest_bin_with_room() -> None:
    assert best_fit_decreasing([60, 50, 40, 30, 20], CAPACITY) == [[0, 2], [1, 3, 4]]


def test_equal_rows_keep_their_order() -> None:
    assert best_fit_decreasing([50, 50, 50, 50], CAPACITY) == [[0, 1], [2, 3]]


def test_a_million_short_rows_are_packed_in_seconds() -> None:
    lengths = [1 + (number * 7919) % CAPACITY for number in range(1_000_000)]
    bins = best_fit_decreasing(lengths, CAPACITY)
    assert len(bins) <= 1.01 * sum(lengths) / CAPACITY
