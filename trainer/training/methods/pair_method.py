"""The base class of the methods that train on pairs of answers: `dpo` and `orpo`.

Two adjacent rows of the dataset are a pair: an even row has the chosen answer, the next row the rejected answer to
the same prompt. The loss of an optimizer step is the mean over its pairs, so the split into micro-batches does not
change it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.training.batches import token_budget
from trainer.training.distributed import RankShare
from trainer.training.methods.method import Method, MethodInputs, StepRows
from trainer.training.methods.reference import share_units, sort_units
from trainer.training.methods.step_sums import StepSums
from trainer.training.progress import Meter
from trainer.training.token_store import OrderedTokens, TokenStore


@dataclass(frozen=True)
class Pairs:
    """Some pairs; every attribute is float32 [pairs], on the device.

    Attributes:
        chosen, rejected: log-probability of each answer under the trained model, in nats.
        chosen_reference, rejected_reference: the same under the reference; 0 for a method without one.
        chosen_tokens, rejected_tokens: number of tokens of each answer.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @classmethod
    def of_rows(cls, policy: Tensor, reference: Tensor, tokens: Tensor) -> Pairs:
        """Splits values of rows, float32 [2 · pairs] each, into those of chosen and of rejected answers.

        Args:
            policy: log-probability of each row under the trained model.
            reference: the same under the reference.
            tokens: number of tokens of each row's answer.
        """
        # Column 0 of [pairs, 2] is the even rows, column 1 the odd ones: the chosen and the rejected answers, in
        # the order of the fields.
        return cls(
            *(
                part
                for values in (policy, reference, tokens)
                for part in values.view(-1, 2).unbind(1)
            )
        )

    @property
    def chosen_ratio(self) -> Tensor:
        """The log-ratio log π(chosen) - log π_ref(chosen)."""
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> Tensor:
        """The log-ratio log π(rejected) - log π_ref(rejected)."""
        return self.rejected - self.rejected_reference

    @property
    def margin(self) -> Tensor:
        """The difference of the log-ratios of the chosen and the rejected answer."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_margin(self) -> Tensor:
        """The difference of the log-ratios, each divided by the number of tokens of its answer."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


@dataclass(frozen=True)
class PairTotals:
    """The denominators of means over pairs: the number of pairs, and of tokens in their chosen answers."""

    pairs: int
    chosen_tokens: int

    @classmethod
    def of_counts(cls, counts: Sequence[int]) -> PairTotals:
        """Counts from the trained tokens of each row, chosen and rejected in turn."""
        return cls(len(counts) // 2, sum(counts[::2]))


class PairMethod(Method):
    """A method that trains on pairs. A subclass defines the loss and the metrics of a pair.

    Args:
        inputs: pairs, the model's loss and the sections of the spec.
        train_reference, held_out_reference: log-probability of each row under the reference, float32 [rows]; None
            for a method without a reference.

    Attributes:
        measured: names of the metrics that `measure` returns; their means over pairs are logged.
    """

    rows_per_unit = 2
    mean_metrics: ClassVar[tuple[str, ...]] = (
        "rewards_chosen",
        "rewards_rejected",
        "rewards_margins",
        "logps_chosen",
        "logps_rejected",
    )
    measured: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        inputs: MethodInputs,
        train_reference: Tensor | None = None,
        held_out_reference: Tensor | None = None,
    ) -> None:
        super().__init__(inputs)
        self._section = inputs.train
        self._rows = RowValues.of_examples(inputs.dataset.train, train_reference, inputs.device)
        self._recent = StepSums(self.zero_sums(inputs.device))
        held_out = RowValues.of_examples(
            inputs.dataset.evaluation, held_out_reference, inputs.device
        )
        self.evaluation = PairEvaluation(self, inputs, held_out)

    @abstractmethod
    def loss_part(self, pairs: Pairs, totals: PairTotals) -> Tensor:
        """Returns the contribution of some pairs to the mean over the pairs of `totals`: scalar, with graph."""

    @abstractmethod
    def measure(self, pairs: Pairs) -> Tensor:
        """Returns the sums over the pairs of the metrics in `measured`: float64 [measured], without a graph."""

    def compute_gradients(self, step: StepRows, budget: int) -> Tensor:
        """Adds this rank's contribution to the gradient of the mean over the step's pairs.

        Returns:
            float64 [2 + measured]: the rank's contribution to that mean, then the sums that `read_metrics`
            averages: the loss times the number of pairs in the step, and the metrics.
        """
        totals = PairTotals.of_counts(step.share.target_counts)
        sums = self.zero_sums(self._rows.tokens.device)
        start = step.rows.start
        for part, weight in step.share.weighted_slices(
            self.split(step.ordered.lengths[step.rows], budget)
        ):
            rows = slice(start + part.start, start + part.stop)
            loss, part_sums = self.evaluate_pairs(step.ordered, rows, self._rows, totals)
            # `loss_part` divides by the totals of all ranks, so the gradients add up over micro-batches and ranks
            # to that of the mean. The weight is 0 where a rank runs the model only for the others.
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            sums += part_sums * weight
        # The meter adds up means of steps and divides by the steps; `read_metrics` adds up pairs.
        return torch.cat([sums[:1] / totals.pairs, sums])

    def evaluate_pairs(
        self, ordered: OrderedTokens, rows: slice, values: RowValues, totals: PairTotals
    ) -> tuple[Tensor, Tensor]:
        """Runs the model on some rows, and computes the loss and the metrics of their pairs.

        Args:
            ordered: rows on the device.
            rows: the rows, as a slice of `ordered`.
            values: values of all rows of the store that `ordered` was made from.
            totals: the denominators of the means.

        Returns:
            The contribution to the mean loss, scalar, with its graph; and the sums that `means_of` divides by the
            number of pairs, float64 [1 + measured], without a graph.
        """
        # Both answers of a pair are in one micro-batch: the loss of a pair needs both graphs at once.
        numbers = ordered.rows[rows]
        log_probabilities = -self._loss.row_losses(ordered.batch(rows), rows_per_unit=2)
        pairs = Pairs.of_rows(log_probabilities, values.reference[numbers], values.tokens[numbers])
        loss = self.loss_part(pairs, totals)
        # The loss is a share of the mean over `totals.pairs`; multiplied by that number it is a sum like the
        # metrics.
        loss_sum = (loss.detach().double() * totals.pairs).unsqueeze(0)
        return loss, torch.cat([loss_sum, self.measure(pairs)])

    def means_of(self, sums: Tensor, pairs: int) -> dict[str, float]:
        """Returns the means over pairs by name, `loss` first; waits for the device."""
        return dict(zip(("loss", *self.measured), (sums / pairs).tolist(), strict=True))

    def zero_sums(self, device: torch.device) -> Tensor:
        """Returns the sums over 0 pairs: float64 [1 + measured]."""
        return torch.zeros(1 + len(self.measured), dtype=torch.float64, device=device)

    def record_step(self, sums: Tensor, share: RankShare) -> None:
        """Adds a complete step to the sums that the next `read_metrics` averages."""
        self._recent.add(sums[1:], PairTotals.of_counts(share.target_counts).pairs)

    def read_metrics(self, _recent: Meter) -> dict[str, float]:
        """Returns means over the pairs of all steps since the last call; waits for the device."""
        return self.means_of(*self._recent.take())

    def mean_loss(self, total: Meter, steps: int) -> float:
        """Returns the mean over the steps of each step's mean loss per pair; waits for the device."""
        return total.read(per=steps)

    def state(self) -> tuple[float, ...]:
        """Returns the sums for the next `read_metrics`, and the number of pairs as last; waits for the device."""
        return self._recent.state()

    def restore(self, state: tuple[float, ...]) -> None:
        """Continues from the return value of `state`."""
        self._recent.restore(state)


@dataclass(frozen=True)
class RowValues:
    """The values of rows that do not change in training: float32 [rows] each, on the device.

    Attributes:
        reference: log-probability of the answer under the reference, in nats.
        tokens: number of tokens of the answer.
    """

    reference: Tensor
    tokens: Tensor

    @classmethod
    def of_examples(
        cls, examples: Sequence[Example], reference: Tensor | None, device: torch.device
    ) -> RowValues:
        """Counts the trained tokens of each row. Without `reference`, its log-probabilities are 0."""
        tokens = torch.tensor([float(example.targets) for example in examples], device=device)
        return cls(torch.zeros_like(tokens) if reference is None else reference, tokens)


class PairEvaluation:
    """Computes the mean loss and the mean metrics of the held-out pairs; every pair has the same weight.

    Args:
        method: defines the loss and the metrics of a pair.
        inputs: the held-out pairs and the model's loss.
        values: reference log-probabilities and numbers of tokens of the held-out rows.

    Attributes:
        extra: metrics of the last evaluation apart from the loss, with the prefix `eval_`.
    """

    def __init__(self, method: PairMethod, inputs: MethodInputs, values: RowValues) -> None:
        examples, loss = inputs.dataset.evaluation, inputs.loss
        self.extra: dict[str, float] = {}
        self._method, self._loss, self._values, self._ranks = method, loss, values, inputs.ranks
        self._totals = PairTotals.of_counts([example.targets for example in examples])
        if not examples:
            return
        store = TokenStore(examples, inputs.device)
        longest_rows = 2 * inputs.train.per_device_eval_batch_size
        budget = token_budget(longest_rows * max(store.lengths), inputs.device)
        self._share, self._ordered, self._slices = share_units(
            sort_units(store.lengths, 2), store, loss, budget, inputs.ranks, 2
        )

    def loss(self) -> float | None:
        """Returns the loss with the present adapter; None where there are no held-out pairs. Sets `extra`."""
        if not self._totals.pairs:
            return None
        sums = self._method.zero_sums(self._values.tokens.device)
        with self._loss.evaluating():
            for rows, weight in self._share.weighted_slices(self._slices):
                _, part_sums = self._method.evaluate_pairs(
                    self._ordered, rows, self._values, self._totals
                )
                sums += part_sums * weight
        values = self._method.means_of(self._ranks.all_reduce(sums), self._totals.pairs)
        mean_loss = values.pop("loss")
        self.extra = {f"eval_{name}": value for name, value in values.items()}
        return mean_loss

    def measured(self) -> dict[str, float]:
        """Returns a copy of `extra`; evaluates first if it is empty, as in a resumed run that had no step left."""
        if not self.extra:
            self.loss()
        return dict(self.extra)
