"""Loss on the held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.data.examples.example import Example
from trainer.training.batches import split_micro_batches
from trainer.training.distributed import ALONE, RankGroup
from trainer.training.loss import CausalLoss
from trainer.training.token_store import TokenStore


class Evaluation:
    """Mean loss per trained token over some rows; every token weighs the same, whichever row it is in.

    Args:
        examples: the rows; may be none.
        loss: the model's loss.
        rows: how many of the longest rows a micro-batch may have.
        device: where the model is.
        ranks: who shares the rows.

    Attributes:
        extra: what the last evaluation measured beside the loss: nothing.
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
        budget = rows * max(lengths)

        def split(row_lengths: Sequence[int]) -> list[slice]:
            return split_micro_batches(row_lengths, budget, loss.cost)

        order = sorted(range(len(examples)), key=lengths.__getitem__)
        # No target counts: the sum over all ranks is divided by `_targets` below.
        self._share = ranks.share_rows(order, lengths, [0] * len(order), lambda own: len(split(own)))
        own = [examples[row] for row in self._share.rows]
        self._slices = split([example.length for example in own])
        # A rank without rows never reads its store, but a store has at least one row.
        self._ordered = TokenStore(own or examples[:1], device).reorder(range(len(own)))

    def loss(self) -> float | None:
        """Return the mean loss with the adapter as it is now, in nats; None where there are no rows."""
        if not self._targets:
            return None
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        with self._loss.evaluating():
            for rows, weight in self._share.weighted_slices(self._slices):
                total += self._loss.total_loss(self._ordered.batch(rows)) * weight
        return float(self._ranks.all_reduce(total).item()) / self._targets

    def measured(self) -> dict[str, float]:
        """Return a copy of `extra`."""
        return dict(self.extra)
