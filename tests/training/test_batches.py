"""The plan covers every example, depends on the seed alone, and keeps like lengths together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.spec import TrainSection
from trainer.training.batches import (
    StepPlan,
    TokenCost,
    padded_cost,
    sort_rows,
    split_micro_batches,
)


def plan(lengths: list[int], **section: Any) -> StepPlan:
    return StepPlan(lengths, TrainSection(**section))


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 7),
    accumulation=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_every_epoch_sees_every_example_once(
    lengths: list[int], size: int, accumulation: int, epochs: int, seed: int
) -> None:
    made = plan(
        lengths,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=float(epochs),
        seed=seed,
    )
    steps = list(made.steps())
    assert len(steps) == made.total_steps == epochs * made.steps_per_epoch
    for epoch in range(epochs):
        part = steps[epoch * made.steps_per_epoch : (epoch + 1) * made.steps_per_epoch]
        assert all(0 < len(units) <= accumulation * size for units in part)
        assert sorted(unit for units in part for unit in units) == list(range(len(lengths)))
    assert list(made.steps()) == steps
    for done in range(len(steps) + 1):
        assert list(made.steps(done)) == steps[done:]


def test_epochs_and_seeds_differ_in_order() -> None:
    lengths = list(range(1, 65))
    two = list(plan(lengths, num_train_epochs=2.0).steps())
    assert two[:16] != two[16:]
    assert list(plan(lengths, seed=1).steps()) != list(plan(lengths, seed=2).steps())


@pytest.mark.parametrize(
    ("section", "steps"), [({"max_steps": 5}, 5), ({"num_train_epochs": 0.5}, 5), ({}, 10)]
)
def test_number_of_steps(section: dict[str, Any], steps: int) -> None:
    made = plan([3] * 40, **section)
    assert made.total_steps == len(list(made.steps())) == steps


def test_steps_may_go_beyond_the_examples() -> None:
    assert len(list(plan([1, 2], max_steps=9).steps())) == 9


def test_batches_hold_little_padding() -> None:
    lengths = [1 + (number * 37) % 200 for number in range(200)]
    batches = list(plan(lengths, per_device_train_batch_size=8).steps())
    real = sum(lengths)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded / real < 1.1


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    budget=st.integers(1, 300),
    padded=st.booleans(),
)
def test_a_cut_covers_all_rows_within_the_budget(
    lengths: list[int], budget: int, padded: bool
) -> None:
    lengths.sort()
    cost: TokenCost = padded_cost if padded else sum
    slices = split_micro_batches(lengths, budget, cost)
    assert [row for part in slices for row in range(len(lengths))[part]] == list(
        range(len(lengths))
    )
    assert all(cost(lengths[part]) <= budget or part.stop - part.start == 1 for part in slices)


def test_a_cut_is_even() -> None:
    assert split_micro_batches([10] * 12, 90, sum) == [slice(0, 6), slice(6, 12)]
    assert split_micro_batches([10] * 12, 1000, sum) == [slice(0, 12)]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=30),
    st.integers(1, 400),
)
def test_what_belongs_together_is_never_cut_apart(
    pairs: list[tuple[int, int]], budget: int
) -> None:
    lengths = [length for pair in pairs for length in pair]
    order = sort_rows(
        [[row, row + 1] for row in range(0, len(lengths), 2)], lengths, keep_units=True
    )
    assert sorted(order) == list(range(len(lengths)))
    assert all(
        one % 2 == 0 and other == one + 1
        for one, other in zip(order[::2], order[1::2], strict=True)
    )
    longest = [
        max(lengths[row] for row in order[place : place + 2]) for place in range(0, len(order), 2)
    ]
    assert longest == sorted(longest)
    ordered = [lengths[row] for row in order]
    costs: tuple[TokenCost, ...] = (sum, padded_cost)
    for cost in costs:
        slices = split_micro_batches(ordered, budget, cost, rows_per_unit=2)
        assert [part.start for part in slices] == [0, *(part.stop for part in slices[:-1])]
        assert slices[-1].stop == len(lengths)
        for part in slices:
            rows = ordered[part]
            assert len(rows) % 2 == 0
            assert len(rows) == 2 or cost(rows) <= budget


def test_rows_that_need_not_stay_together_are_sorted_by_length() -> None:
    assert sort_rows([[3, 0], [1]], [7, 9, 1, 2], keep_units=False) == [3, 0, 1]
    assert sort_rows([[1, 3], [0, 2]], [7, 9, 1, 2], keep_units=True) == [0, 2, 1, 3]
