"""The base class of the methods that train on pairs of answers: `dpo` and `orpo`.

Two adjacent rows of the dataset are a pair: an even row has the chosen answer, the next row the rejected answer to
the same prompt. The loss of an optimizer step is the mean over its pairs, so the split into micro-batches does not
change it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.training.batches import sort_rows, split_micro_batches, token_budget
from trainer.training.distributed import ALONE, RankGroup, RankShare
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import Method, MethodInputs, StepRows
from trainer.training.progress import Meter
from trainer.training.token_store import SECTION_TOKENS, OrderedTokens, TokenStore


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
        """Split values of rows, float32 [2 · pairs] each, into those of chosen and of rejected answers.

        Args:
            policy: log-probability of each row under the trained model.
            reference: the same under the reference.
            tokens: number of tokens of each row's answer.
        """
        return cls(*(part for values in (policy, reference, tokens) for part in values.view(-1, 2).unbind(1)))

    @property
    def chosen_ratio(self) -> Tensor:
        """Returns log π(chosen) - log π_ref(chosen)."""
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> Tensor:
        """Returns log π(rejected) - log π_ref(rejected)."""
        return self.rejected - self.rejected_reference

    @property
    def margin(self) -> Tensor:
        """Returns the difference of the log-ratios of the chosen and the rejected answer."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_margin(self) -> Tensor:
        """Returns the difference of the log-ratios, each divided by the number of tokens of its answer."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


@dataclass(frozen=True)
class PairTotals:
    """The denominators of means over pairs: the number of pairs, and of tokens in their chosen answers."""

    pairs: int
    chosen_tokens: int

    @classmethod
    def of_counts(cls, counts: Sequence[int]) -> PairTotals:
        """Count from the trained tokens of each row, chosen and rejected in turn."""
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
        self._recent = self.zero_sums(inputs.device)
        self._recent_pairs = 0
        held_out = RowValues.of_examples(inputs.dataset.evaluation, held_out_reference, inputs.device)
        self.evaluation = PairEvaluation(self, inputs, held_out)

    @abstractmethod
    def loss_part(self, pairs: Pairs, totals: PairTotals) -> Tensor:
        """Returns the contribution of some pairs to the mean over the pairs of `totals`: scalar, with graph."""

    @abstractmethod
    def measure(self, pairs: Pairs) -> Tensor:
        """Returns the sums over the pairs of the metrics in `measured`: float64 [measured], without a graph."""

    def compute_gradients(self, step: StepRows, budget: int) -> Tensor:
        """Add this rank's contribution to the gradient of the mean over the step's pairs.

        Returns:
            float64 [2 + measured]: the rank's contribution to that mean, then the sums that `read_metrics`
            averages: the loss times the number of pairs in the step, and the metrics.
        """
        totals = PairTotals.of_counts(step.share.target_counts)
        sums = self.zero_sums(self._recent.device)
        start = step.rows.start
        for part, weight in step.share.weighted_slices(self.split(step.ordered.lengths[step.rows], budget)):
            pairs = self.pairs_of(step.ordered, slice(start + part.start, start + part.stop), self._rows)
            loss = self.loss_part(pairs, totals)
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            sums += self.sums_of(loss.detach(), pairs, totals) * weight
        return torch.cat([sums[:1] / totals.pairs, sums])

    def pairs_of(self, ordered: OrderedTokens, rows: slice, values: RowValues) -> Pairs:
        """Run the model on some rows; returns their pairs, with the graph of the log-probabilities."""
        # Both answers of a pair are in one micro-batch: the loss of a pair needs both graphs at once.
        numbers = ordered.rows[rows]
        log_probabilities = -self._loss.row_losses(ordered.batch(rows), rows_per_unit=2)
        return Pairs.of_rows(log_probabilities, values.reference[numbers], values.tokens[numbers])

    def sums_of(self, loss: Tensor, pairs: Pairs, totals: PairTotals) -> Tensor:
        """Returns the sums that `means_of` divides by the number of pairs: float64 [1 + measured], no graph.

        The loss is a share of the mean over `totals.pairs`; multiplied by that number it is a sum like the others.
        """
        return torch.cat([(loss.double() * totals.pairs).unsqueeze(0), self.measure(pairs)])

    def means_of(self, sums: Tensor, pairs: int) -> dict[str, float]:
        """Returns the means over pairs by name, `loss` first; waits for the device."""
        return dict(zip(("loss", *self.measured), (sums / pairs).tolist(), strict=True))

    def zero_sums(self, device: torch.device) -> Tensor:
        """Returns the sums over 0 pairs: float64 [1 + measured]."""
        return torch.zeros(1 + len(self.measured), dtype=torch.float64, device=device)

    def record_step(self, sums: Tensor, share: RankShare) -> None:
        """Add a complete step to the sums that the next `read_metrics` averages."""
        self._recent += sums[1:]
        self._recent_pairs += PairTotals.of_counts(share.target_counts).pairs

    def read_metrics(self, _recent: Meter) -> dict[str, float]:
        """Returns means over the pairs of all steps since the last call; waits for the device."""
        values = self.means_of(self._recent, self._recent_pairs)
        self._recent, self._recent_pairs = torch.zeros_like(self._recent), 0
        return values

    def mean_loss(self, total: Meter, steps: int) -> float:
        """Returns the mean over the steps of each step's mean loss per pair; waits for the device."""
        return total.read(per=steps)

    def state(self) -> tuple[float, ...]:
        """Returns the sums of the next `read_metrics`, and last the number of pairs; waits for the device."""
        return (*self._recent.tolist(), float(self._recent_pairs))

    def restore(self, state: tuple[float, ...]) -> None:
        """Continue from the return value of `state`."""
        *sums, pairs = state
        self._recent = torch.tensor(sums, dtype=torch.float64, device=self._recent.device)
        self._recent_pairs = int(pairs)


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
    def of_examples(cls, examples: Sequence[Example], reference: Tensor | None, device: torch.device) -> RowValues:
        """Count the trained tokens of each row. Without `reference`, its log-probabilities are 0."""
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
        longest_pairs = 2 * inputs.train.per_device_eval_batch_size
        budget = token_budget(longest_pairs * max(store.lengths), inputs.device)
        order = sort_rows(pair_units(len(examples)), store.lengths, keep_units=True)
        self._share = _share_pairs(order, store, loss, budget, inputs.ranks)
        self._ordered = store.reorder(self._share.rows)
        self._slices = split_micro_batches(self._ordered.lengths, budget, loss.cost, rows_per_unit=2)

    def loss(self) -> float | None:
        """Returns the loss with the present adapter; None where there are no held-out pairs. Sets `extra`."""
        if not self._totals.pairs:
            return None
        sums = self._method.zero_sums(self._values.tokens.device)
        with self._loss.evaluating():
            for rows, weight in self._share.weighted_slices(self._slices):
                pairs = self._method.pairs_of(self._ordered, rows, self._values)
                loss = self._method.loss_part(pairs, self._totals)
                sums += self._method.sums_of(loss, pairs, self._totals) * weight
        values = self._method.means_of(self._ranks.all_reduce(sums), self._totals.pairs)
        mean_loss = values.pop("loss")
        self.extra = {f"eval_{name}": value for name, value in values.items()}
        return mean_loss

    def measured(self) -> dict[str, float]:
        """Returns `extra`; evaluates first if it is empty, as in a resumed run that had no step left."""
        if not self.extra:
            self.loss()
        return dict(self.extra)


def pair_units(rows: int) -> list[list[int]]:
    """Returns the rows of each pair."""
    return [[row, row + 1] for row in range(0, rows, 2)]


def log_probabilities(
    examples: Sequence[Example], loss: CausalLoss, *, pairs: int, device: torch.device, ranks: RankGroup = ALONE
) -> Tensor:
    """Compute the log-probability of the trained tokens of each example with the model in its present state.

    Args:
        examples: pairs.
        loss: loss of the model.
        pairs: number of the longest pairs that fit into a micro-batch.
        device: device of the model.
        ranks: the ranks that divide the pairs among themselves; each rank returns all numbers.

    Returns:
        float32 [examples], in nats, in the order of the examples.
    """
    result = torch.zeros(len(examples), dtype=torch.float32, device=device)
    if not examples:
        return result
    store = TokenStore(examples, device)
    budget = token_budget(2 * pairs * max(store.lengths), device)
    for section in _sections(store.lengths):
        share = _share_pairs(section, store, loss, budget, ranks)
        ordered = store.reorder(share.rows)
        slices = split_micro_batches(ordered.lengths, budget, loss.cost, rows_per_unit=2)
        for part, weight in share.weighted_slices(slices):
            # The loss is -log p. Rows of other ranks remain 0 here, so the sum over ranks has every row.
            result[ordered.rows[part]] -= loss.row_losses(ordered.batch(part), rows_per_unit=2) * weight
    return ranks.all_reduce(result)


def _share_pairs(
    rows: Sequence[int], store: TokenStore, loss: CausalLoss, budget: int, ranks: RankGroup
) -> RankShare:
    """Returns this rank's share of pairs, which must be sorted by length."""

    def forward_passes(lengths: Sequence[int]) -> int:
        return len(split_micro_batches(lengths, budget, loss.cost, rows_per_unit=2))

    return ranks.share_rows(rows, store.lengths, store.target_counts, forward_passes, rows_per_unit=2)


def _sections(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields the rows of all pairs by length, in sections of about `SECTION_TOKENS` tokens, one upload each."""
    section: list[int] = []
    tokens = 0
    for row in sort_rows(pair_units(len(lengths)), lengths, keep_units=True):
        section.append(row)
        tokens += lengths[row]
        if tokens >= SECTION_TOKENS and len(section) % 2 == 0:
            yield section
            section, tokens = [], 0
    if section:
        yield section
