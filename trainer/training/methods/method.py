"""What a run learns by, as the loop calls it: `SupervisedFineTuning`, and `Preference` in a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainer.training.batches import split_micro_batches
from trainer.training.distributed import RankShare
from trainer.training.evaluation import Evaluation
from trainer.training.loss import CausalLoss
from trainer.training.progress import Meter
from trainer.training.token_store import OrderedTokens


class HeldOut(Protocol):
    """Measures held-out rows.

    Attributes:
        extra: what the last evaluation measured beside the loss.
    """

    extra: dict[str, float]

    def loss(self) -> float | None:
        """The loss with the adapter as it is now; None where there are no rows."""

    def measured(self) -> dict[str, float]:
        """`extra`, of the adapter as it is now."""


class Method(Protocol):
    """How gradients are made of rows, and what is logged of them."""

    @property
    def rows_per_unit(self) -> int:
        """How many neighbours among the rows are never separated: 2 where they are pairs."""

    @property
    def evaluation(self) -> HeldOut:
        """Of the held-out rows."""

    def passes(self, lengths: Sequence[int], budget: int) -> int:
        """How often rows of some lengths make the model run."""

    def gradients(self, ordered: OrderedTokens, rows: slice, share: RankShare, budget: int) -> Tensor:
        """Gradients of this process's share of an optimizer step.

        Args:
            ordered: rows on the device.
            rows: which of them are this process's.
            share: what the step has in all.
            budget: tokens that go through the model at once; a row (or unit, if whole) that has more is alone.

        Returns:
            What is added up over processes: float64 [n], on the device, what is added up as the loss first.
        """

    def count(self, sums: Tensor, share: RankShare) -> None:
        """A step is done, with this from `gradients`, over all processes: `read` and `state` have it now."""

    def read(self, recent: Meter) -> dict[str, float]:
        """What is logged of the steps since the last call, `loss` first; waits for the device."""

    def mean_loss(self, total: Meter, steps: int) -> float:
        """Of the whole run of so many steps; waits for the device."""

    def state(self) -> tuple[float, ...]:
        """What the next `read` would be made of beside the meter; waits for the device."""

    def restore(self, state: tuple[float, ...]) -> None:
        """Go on from there."""


class SupervisedFineTuning:
    """The method `sft`: every trained token of a step weighs the same, on all processes.

    Args:
        loss: of the model that is trained.
        evaluation: of the held-out rows.
    """

    rows_per_unit = 1

    def __init__(self, loss: CausalLoss, evaluation: Evaluation) -> None:
        self._loss = loss
        self.evaluation = evaluation

    def passes(self, lengths: Sequence[int], budget: int) -> int:
        """See `Method`."""
        return len(split_micro_batches(lengths, budget, self._loss.cost))

    def gradients(self, ordered: OrderedTokens, rows: slice, share: RankShare, budget: int) -> Tensor:
        """See `Method`; returns the sum over tokens, and divides gradients by how many the step has."""
        total = torch.zeros(1, dtype=torch.float64, device=ordered.rows.device)
        for part, weight in share.weighted_slices(
            split_micro_batches(ordered.lengths[rows], budget, self._loss.cost)
        ):
            summed = self._loss.total_loss(ordered.batch(slice(rows.start + part.start, rows.start + part.stop)))
            (summed * weight / share.trained_tokens).backward()  # type: ignore[no-untyped-call]
            total += summed.detach() * weight
        return total

    def count(self, sums: Tensor, share: RankShare) -> None:
        """See `Method`; the meter has it all."""

    def read(self, recent: Meter) -> dict[str, float]:
        """Loss per trained token."""
        return {"loss": recent.read()}

    def mean_loss(self, total: Meter, steps: int) -> float:  # noqa: ARG002 -- of pairs, steps are what counts
        """Loss per trained token."""
        return total.read()

    def state(self) -> tuple[float, ...]:
        """See `Method`; nothing."""
        return ()

    def restore(self, state: tuple[float, ...]) -> None:
        """See `Method`."""
