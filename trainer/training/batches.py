"""Which rows make up which optimizer step, and how a step is cut into what goes through the model at once.

The order depends on nothing but lengths, the train section and its seed, so the state of a run is one number: how
many steps are done. Rows of like length share a step: little would be padding where rows must be padded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch

from trainer.spec import TrainSection

POOL_BATCHES: Final = 50
"""Units are sorted by length within pools of this many batches; pools and batches are shuffled."""

CPU_TOKENS: Final = 1024
"""So many at once keep a CPU's matrix products at full speed; more would only take memory."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class StepPlan:
    """The course of a training run.

    Attributes:
        lengths: number of tokens of each unit: a row, or a bin of rows where rows are packed.
        train: batch sizes, epochs, seed.
        processes: how many share a step; the same units make up the same step where one process accumulates
            as many times more.
    """

    lengths: Sequence[int]
    train: TrainSection
    processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every unit is seen once; the last may be smaller."""
        batches = math.ceil(len(self.lengths) / self.train.per_device_train_batch_size)
        return math.ceil(batches / self._batches_a_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.max_steps > 0:
            return self.train.max_steps
        return max(1, math.ceil(self.train.num_train_epochs * self.steps_per_epoch))

    def steps(self, done: int = 0) -> Iterator[list[int]]:
        """For each optimizer step after the first `done` ones its units, as indices."""
        first, skipped = divmod(done, self.steps_per_epoch)
        epochs = (self._epoch(number) for number in itertools.count(first))
        steps = itertools.chain.from_iterable(epochs)
        return itertools.islice(steps, skipped, skipped + self.total_steps - done)

    @property
    def _batches_a_step(self) -> int:
        return self.train.gradient_accumulation_steps * self.processes

    def _epoch(self, number: int) -> list[list[int]]:
        size = self.train.per_device_train_batch_size
        generator = torch.Generator().manual_seed(self.train.seed * 1_000_003 + number)
        order = _shuffled(range(len(self.lengths)), generator)
        pools = _chunks(order, size * POOL_BATCHES)
        batches = [batch for pool in pools for batch in _by_length(pool, self.lengths, size)]
        steps = _chunks(_shuffled(batches, generator), self._batches_a_step)
        return [[unit for batch in step for unit in batch] for step in steps]


def _by_length(indices: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of `size` neighbours in length; equal lengths keep their order."""
    return _chunks(sorted(indices, key=lengths.__getitem__), size)


def _shuffled(items: Sequence[_T], generator: torch.Generator) -> list[_T]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]


def _chunks(items: Sequence[_T], size: int) -> list[list[_T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


Cost = Callable[[Sequence[int]], int]
"""How many tokens the model is given for rows of these lengths."""


def padded_cost(lengths: Sequence[int]) -> int:
    """Tokens with padding: as many for each row as the longest has."""
    return len(lengths) * max(lengths)


def in_order(units: Sequence[Sequence[int]], lengths: Sequence[int], *, whole: bool) -> list[int]:
    """The rows of some units, sorted by length; with `whole` units are sorted, by their longest row."""
    if not whole:
        return sorted((row for unit in units for row in unit), key=lengths.__getitem__)
    by_longest = sorted(units, key=lambda unit: max(lengths[row] for row in unit))
    return [row for unit in by_longest for row in unit]


def token_budget(wanted: int, device: torch.device) -> int:
    """How many tokens go through the model at once, where the spec's batch size would make up to `wanted`."""
    return min(wanted, CPU_TOKENS) if device.type == "cpu" else wanted


def cut(lengths: Sequence[int], budget: int, cost: Cost, *, rows_per_unit: int = 1) -> list[slice]:
    """Cut rows, sorted by length, into as few micro-batches as a budget allows, of about equal cost.

    The loss is a sum over tokens, divided by the whole step's tokens: the gradients are the same for every cut.

    Args:
        lengths: of each row, sorted.
        budget: tokens at once; a row that has more is alone.
        cost: what counts against it.
        rows_per_unit: so many neighbours are never separated; the number of rows is a multiple of it.

    Returns:
        Slices that follow one another and cover all rows.
    """
    if not lengths:
        return []
    fewest = len(_cut(lengths, budget, cost, rows_per_unit))
    even = math.ceil(cost(lengths) / fewest)
    evenly = _cut(lengths, min(even + cost(lengths[-rows_per_unit:]) // 2, budget), cost, rows_per_unit)
    return evenly if len(evenly) == fewest else _cut(lengths, budget, cost, rows_per_unit)


def _cut(lengths: Sequence[int], budget: int, cost: Cost, rows_per_unit: int) -> list[slice]:
    slices, start = [], 0
    for end in range(rows_per_unit, len(lengths) + 1, rows_per_unit):
        if end == len(lengths) or cost(lengths[start : end + rows_per_unit]) > budget:
            slices.append(slice(start, end))
            start = end
    return slices
