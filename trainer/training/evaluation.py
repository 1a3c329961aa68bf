"""Loss on the held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.data.examples.example import Example
from trainer.training.batches import cut
from trainer.training.distributed import ALONE, RankGroup
from trainer.training.loss import CausalLoss
from trainer.training.token_store import TokenStore


class Evaluation:
    """Loss per trained token over some rows; every token counts alike, whichever row it is in.

    Args:
        examples: the rows; may be none.
        loss: the model's.
        rows: so many of the longest go through the model at once.
        device: where.
        ranks: who shares them.

    Attributes:
        extra: what the last evaluation measured beside the loss; nothing.
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
        self._loss = loss
        self.extra: dict[str, float] = {}
        self._ranks = ranks
        self._targets = sum(example.targets for example in examples)
        if not examples:
            return
        lengths = [example.length for example in examples]
        budget = rows * max(lengths)
        order = sorted(range(len(examples)), key=lengths.__getitem__)
        self._share = ranks.share(order, lengths, [0] * len(order), lambda own: len(cut(own, budget, loss.cost)))
        own = [examples[row] for row in self._share.rows]
        self._slices = cut([example.length for example in own], budget, loss.cost)
        self._ordered = TokenStore(own or examples[:1], device).ordered(range(len(own)))
        self._device = device

    def loss(self) -> float | None:
        """The loss with the adapter as it is now; None where there are no rows."""
        if not self._targets:
            return None
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        with self._loss.evaluating():
            for rows, weight in self._share.runs(self._slices):
                total += self._loss.sum(self._ordered.batch(rows)) * weight
        return float(self._ranks.sum(total).item()) / self._targets

    def measured(self) -> dict[str, float]:
        """`extra`."""
        return dict(self.extra)
