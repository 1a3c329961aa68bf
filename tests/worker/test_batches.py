"""The plan covers every example, depends on the seed alone, and keeps like lengths together."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.spec import TrainSection
from trainer.worker.batches import Plan, collate
from trainer.worker.encode import Example


def plan(lengths: list[int], **section: Any) -> Plan:
    return Plan(lengths, TrainSection(**section))


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
        assert all(0 < len(batches) <= accumulation for batches in part)
        assert all(0 < len(batch) <= size for batches in part for batch in batches)
        assert sorted(index for batches in part for batch in batches for index in batch) == list(
            range(len(lengths))
        )
    assert list(made.steps()) == steps


def test_epochs_and_seeds_differ_in_order() -> None:
    lengths = list(range(1, 65))
    two = list(plan(lengths, num_train_epochs=2.0).steps())
    assert two[:16] != two[16:]
    assert list(plan(lengths, seed=1).steps()) != list(plan(lengths, seed=2).steps())


@pytest.mark.parametrize(("section", "steps"), [({"max_steps": 5}, 5), ({"num_train_epochs": 0.5}, 5), ({}, 10)])
def test_number_of_steps(section: dict[str, Any], steps: int) -> None:
    made = plan([3] * 40, **section)
    assert made.total_steps == len(list(made.steps())) == steps


def test_steps_may_go_beyond_the_examples() -> None:
    assert len(list(plan([1, 2], max_steps=9).steps())) == 9


def test_batches_hold_little_padding() -> None:
    lengths = [1 + (number * 37) % 200 for number in range(200)]
    batches = [batch for step in plan(lengths, per_device_train_batch_size=8).steps() for batch in step]
    real = sum(lengths)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded / real < 1.1


def test_collate_pads_on_the_right_and_points_at_the_predicting_token() -> None:
    batch = collate(
        [
            Example(array("i", [5, 6, 7]), b"\0\0\1", stops=True),
            Example(array("i", [8, 9]), b"\0\1", stops=True),
        ],
        pad_id=1,
        device=torch.device("cpu"),
    )
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch.targets.tolist() == [7, 9]
    assert batch.positions.tolist() == [1, 3]
