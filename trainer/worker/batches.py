"""Which examples make up which optimizer step, and how a few examples become tensors.

Examples of like length share a batch, so that little of it is padding. The order depends on nothing but the
examples' lengths, the train section and its seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch

from trainer.spec import TrainSection
from trainer.worker.encode import Example

POOL_BATCHES: Final = 50
"""Examples are sorted by length within pools of this many batches; pools and batches are shuffled."""

_T = TypeVar("_T")


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

    def steps(self) -> Iterator[list[list[int]]]:
        """For each optimizer step its micro-batches, as indices of examples; `total_steps` items."""
        epochs = (self._epoch(number) for number in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(epochs), self.total_steps)

    def _epoch(self, number: int) -> list[list[list[int]]]:
        size = self.train.per_device_train_batch_size
        generator = torch.Generator().manual_seed(self.train.seed * 1_000_003 + number)
        order = _shuffled(range(len(self.lengths)), generator)
        pools = _chunks(order, size * POOL_BATCHES)
        batches = [batch for pool in pools for batch in by_length(pool, self.lengths, size)]
        return _chunks(_shuffled(batches, generator), self.train.gradient_accumulation_steps)


def by_length(indices: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of `size` neighbours in length; equal lengths keep their order."""
    return _chunks(sorted(indices, key=lengths.__getitem__), size)


def _shuffled(items: Sequence[_T], generator: torch.Generator) -> list[_T]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]


def _chunks(items: Sequence[_T], size: int) -> list[list[_T]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


@dataclass(frozen=True)
class Tensors:
    """A batch on a device.

    Padding stands on the right, where causal attention keeps it from every real token, and is never a target:
    so no attention mask is needed, and attention runs in its quickest form.

    Attributes:
        input_ids: int64 [examples, longest].
        positions: int64 [targets]: index into the flattened [examples * longest] of the token that predicts.
        targets: int64 [targets]: id to be predicted there.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def collate(examples: Sequence[Example], *, pad_id: int, device: torch.device) -> Tensors:
    """Pad a few examples to one length and say where the loss is taken."""
    width = max(example.length for example in examples)
    ids = torch.full((len(examples), width), pad_id, dtype=torch.int64)
    trained = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : example.length] = torch.tensor(example.ids, dtype=torch.int64)
        trained[row, : example.length] = torch.frombuffer(bytearray(example.trained), dtype=torch.uint8).bool()
    flat = trained.flatten().nonzero().squeeze(1)
    return Tensors(ids.to(device), (flat - 1).to(device), ids.flatten()[flat].to(device))
