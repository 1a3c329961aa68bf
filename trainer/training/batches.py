"""Which units make up which optimizer step, and how a step's rows are split into micro-batches.

The order depends on the rows' lengths, the train section and its seed only. So the position of a run is one
number: how many optimizer steps are done. Units of similar length share a batch, which keeps padding small where
a model needs rectangles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch

from trainer.spec import TrainSection, steps_per_epoch, total_steps

POOL_BATCHES: Final = 50
"""How many batches are drawn at random into a pool, which is then sorted by length and cut into batches."""

CPU_TOKENS: Final = 1024
"""Tokens of a micro-batch that keep a CPU's matrix products at full speed; more would only take memory."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class StepPlan:
    """The optimizer steps of a training run.

    Attributes:
        lengths: tokens of each unit: a row, a pair, or a packed bin.
        train: batch size, accumulation, epochs, seed.
        processes: how many ranks share a step. A run with n ranks has the same steps as a run with one rank that
            accumulates n times as many batches.
    """

    lengths: Sequence[int]
    train: TrainSection
    processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every unit is seen once; the last step may be smaller."""
        return steps_per_epoch(self.train, len(self.lengths), self.processes)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return total_steps(self.train, len(self.lengths), self.processes)

    def steps(self, done: int = 0) -> Iterator[list[int]]:
        """Yields the units of each optimizer step, as indices into `lengths`.

        Args:
            done: number of steps to skip, because an earlier part of the run did them.
        """
        # Every epoch has the same number of steps, so the position follows from `done` and nothing is drawn for
        # the epochs before it. Epochs go on without end; the number of steps ends the run, also within an epoch.
        first_epoch, skipped = divmod(done, self.steps_per_epoch)
        epochs = (self._epoch_steps(number) for number in itertools.count(first_epoch))
        steps = itertools.chain.from_iterable(epochs)
        return itertools.islice(steps, skipped, skipped + self.total_steps - done)

    def _epoch_steps(self, number: int) -> list[list[int]]:
        """Returns the units of each step of an epoch, the first of which has the number 0."""
        size = self.train.per_device_train_batch_size
        # Each epoch has its own seed, so that a resumed run need not repeat the earlier epochs' draws. The factor
        # exceeds the epochs of any realistic run, so that no epoch of one seed has the order of another seed's.
        generator = torch.Generator().manual_seed(self.train.seed * 1_000_003 + number)
        order = _shuffle(range(len(self.lengths)), generator)
        # Sorting all units would make the same batches in every epoch; sorting within random pools does not.
        pools = _split(order, size * POOL_BATCHES)
        batches = [
            batch
            for pool in pools
            for batch in _split(sorted(pool, key=self.lengths.__getitem__), size)
        ]
        # Shuffled again: otherwise each pool would be trained on from its shortest rows to its longest ones.
        batches = _shuffle(batches, generator)
        # A step is the batches that one rank accumulates, times the ranks: how the ranks divide them is decided
        # later, by tokens (`RankGroup.share_rows`).
        steps = _split(batches, self.train.gradient_accumulation_steps * self.processes)
        return [[unit for batch in step for unit in batch] for step in steps]


def _shuffle(items: Sequence[_T], generator: torch.Generator) -> list[_T]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]


def _split(items: Sequence[_T], size: int) -> list[list[_T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


TokenCost = Callable[[Sequence[int]], int]
"""Maps the lengths of rows to how many tokens the model computes for them."""


def padded_cost(lengths: Sequence[int]) -> int:
    """Returns the number of tokens of rows that are padded to the longest."""
    return len(lengths) * max(lengths)


def sort_rows(
    units: Sequence[Sequence[int]], lengths: Sequence[int], *, keep_units: bool
) -> list[int]:
    """Returns the rows of some units, sorted by length.

    Args:
        units: the rows of each unit.
        lengths: tokens of each row.
        keep_units: whether the rows of a unit stay neighbours; then units are sorted by their longest row.
    """
    if not keep_units:
        return sorted((row for unit in units for row in unit), key=lengths.__getitem__)
    by_longest_row = sorted(units, key=lambda unit: max(lengths[row] for row in unit))
    return [row for unit in by_longest_row for row in unit]


def token_budget(wanted: int, device: torch.device) -> int:
    """Returns how many tokens a micro-batch may have.

    Args:
        wanted: tokens that the job spec's batch size makes at most.
        device: device of the model.
    """
    # On a GPU the job spec decides: its batch size was chosen for the GPU's memory.
    return min(wanted, CPU_TOKENS) if device.type == "cpu" else wanted


def split_micro_batches(
    lengths: Sequence[int], budget: int, cost: TokenCost, *, rows_per_unit: int = 1
) -> list[slice]:
    """Splits rows into as few micro-batches as a budget allows, of about equal cost.

    The loss of a step is a sum over tokens (or units) divided by the step's total, so its gradients do not depend
    on how the step is split.

    Args:
        lengths: tokens of each row, sorted.
        budget: largest cost of a micro-batch; a unit that costs more is a micro-batch of its own.
        cost: maps the lengths of a micro-batch's rows to its cost.
        rows_per_unit: number of consecutive rows that are never separated; divides the number of rows.

    Returns:
        Consecutive slices that cover all rows.
    """
    if not lengths:
        return []
    greedy = _split_greedily(lengths, budget, cost, rows_per_unit)
    # The greedy split leaves a small rest at the end. A smaller budget may spread it over all micro-batches: their
    # mean cost, and half the cost of the largest unit (the last one, since rows are sorted) as a margin, because
    # units do not fill a budget exactly. It must not need more of them.
    mean_cost = math.ceil(cost(lengths) / len(greedy))
    even_budget = min(mean_cost + cost(lengths[-rows_per_unit:]) // 2, budget)
    even = _split_greedily(lengths, even_budget, cost, rows_per_unit)
    return even if len(even) == len(greedy) else greedy


def _split_greedily(
    lengths: Sequence[int], budget: int, cost: TokenCost, rows_per_unit: int
) -> list[slice]:
    """Returns slices that each end where one more unit would exceed the budget."""
    slices, start = [], 0
    for end in range(rows_per_unit, len(lengths) + 1, rows_per_unit):
        if end == len(lengths) or cost(lengths[start : end + rows_per_unit]) > budget:
            slices.append(slice(start, end))
            start = end
    return slices
