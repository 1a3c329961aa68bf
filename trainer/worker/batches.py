"""Which examples make up which optimizer step, and how a few examples become tensors.

Examples of like length share a batch, so that little of it is padding. The order depends on nothing but the
examples' lengths, the train section and its seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from trainer.spec import TrainSection
from trainer.worker.encode import Example

POOL_BATCHES: Final = 50
"""Examples are sorted by length within pools of this many batches; the pools and the batches are shuffled."""

Batch = list[int]
"""Indices of the examples that go through the model together."""


@dataclass(frozen=True)
class Plan:
    """The course of a training run.

    Attributes:
        lengths: number of tokens of each example.
        train: batch sizes, epochs, seed.
    """

    lengths: Sequence[int]
    train: TrainSection

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every example is seen once; the last may be smaller."""
        batches = math.ceil(len(self.lengths) / self.train.per_device_train_batch_size)
        return math.ceil(batches / self.train.gradient_accumulation_steps)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.max_steps > 0:
            return self.train.max_steps
        return max(1, math.ceil(self.train.num_train_epochs * self.steps_per_epoch))

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of each optimizer step, `total_steps` times."""
        epochs = (self._epoch(number) for number in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(epochs), self.total_steps)

    def _epoch(self, number: int) -> Iterator[list[Batch]]:
        size = self.train.per_device_train_batch_size
        generator = torch.Generator().manual_seed(self.train.seed * 1_000_003 + number)
        order = _shuffled(range(len(self.lengths)), generator)
        pools = itertools.batched_(order, size * POOL_BATCHES)
        batches = [batch for pool in pools for batch in by_length(pool, self.lengths, size)]
        return _chunks(_shuffled(batches, generator), self.train.gradient_accumulation_steps)
