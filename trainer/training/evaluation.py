"""Loss on the held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from trainer.data.examples.example import Example
from trainer.training.batches import split_micro_batches
from trainer.training.distributed import ALONE, RankGroup
from trainer.training.loss import CausalLoss
from trainer.training.token_store import TokenStore


class Evaluation:
    """Computes the mean loss per trained token over some rows; every token has the same weight.

    Args:
        examples: the rows; may be none.
        loss: the model's loss.
        rows: number of the longest rows that a micro-batch may have.
        device: device of the model.
        ranks: the ranks that divide the rows among themselves.

    Attributes:
        extra: metrics of the last evaluation apart from the loss: none.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        loss: CausalLoss,
        *,
        rows: int,
        device: torch.device,
        ranks: RankGroup = ALONE,
    ) -> None:
        self.extra: dict[str, float] = {}
        self._loss = loss
        self._device = device
        self._ranks = ranks
        self._targets = sum(example.targets for example in examples)
        if not examples:
            return
        lengths = [example.length for example in examples]
        split = partial(split_micro_batches, budget=rows * max(lengths), cost=loss.cost)
        # Rows of similar length share a micro-batch, which keeps padding small; the mean does not change by it.
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        # No target counts: the sum over all ranks is divided by `_targets` below.
        self._share = ranks.share_rows(order, lengths, [0] * len(order), split)
        own = [examples[row] for row in self._share.rows]
        self._slices = split([example.length for example in own])
        # A rank without rows never reads its store, but a store has at least one row.
        self._ordered = TokenStore(own or examples[:1], device).reorder(range(len(own)))

    def loss(self) -> float | None:
        """Returns the mean loss with the present adapter, in nats per token; None where there are no rows."""
        if not self._targets:
            return None
        # (sum over all targets of -log p) / targets, in float64. A mean of the micro-batches' means would give the
        # tokens of short micro-batches more weight.
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        with self._loss.evaluating():
            for rows, weight in self._share.weighted_slices(self._slices):
                total += self._loss.total_loss(self._ordered.batch(rows)) * weight
        return float(self._ranks.all_reduce(total).item()) / self._targets

    def measured(self) -> dict[str, float]:
        """Returns a copy of `extra`."""
        return dict(self.extra)
