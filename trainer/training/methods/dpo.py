"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290): learning from pairs of answers.

The reference is the base model itself: how likely it finds each answer is computed once, before the first step,
and stays on the device, one number for each row. So a step costs what a step of supervised training on as many
tokens costs, and there is no second model. The state of a run holds none of these numbers: who goes on from it
computes them again, from the same rows and base model, which gives the same bits on a CPU.

Rows come in pairs: an even row of a dataset is the chosen, the row behind it the rejected answer to one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset
from trainer.spec import TrainSection
from trainer.training.batches import sort_rows, split_micro_batches, token_budget
from trainer.training.distributed import ALONE, RankGroup, RankShare
from trainer.training.loss import CausalLoss
from trainer.training.methods.dpo_loss import MEASURED, Pairs, Whole, measure, part_of_loss
from trainer.training.progress import Meter
from trainer.training.token_store import SECTION_TOKENS, OrderedTokens, TokenStore

Reference = Callable[[], AbstractContextManager[None]]
"""Within it the model computes what the reference computes: no adapter, no dropout, no gradients."""


class DirectPreferenceOptimization:
    """The method `dpo`.

    It computes the reference's log-probabilities when it is made, so it must be made while the adapter is fresh.

    Args:
        data: pairs; the chosen answer first.
        loss: of the model that is trained.
        section: β, the terms of the loss, batch sizes.
        reference: see the type. Where the adapter's start takes something out of the base weights, it is the model
            with its fresh adapter: together they are the base model.
        device: where.
        ranks: who shares the pairs.

    Attributes:
        evaluation: of the held-out pairs.
    """

    rows_per_unit = 2

    def __init__(
        self,
        data: Dataset,
        loss: CausalLoss,
        section: TrainSection,
        *,
        reference: Reference,
        device: torch.device,
        ranks: RankGroup = ALONE,
    ) -> None:
        self._loss = loss
        self._section = section
        pairs = section.per_device_eval_batch_size
        with reference():
            self._reference = log_probabilities(data.train, loss, pairs=pairs, device=device, ranks=ranks)
            held = log_probabilities(data.evaluation, loss, pairs=pairs, device=device, ranks=ranks)
        self._tokens = _targets(data.train, device)
        self.evaluation = PairEvaluation(data.evaluation, held, loss, section, device=device, ranks=ranks)
        self._recent = _nothing(device)
        self._recent_pairs = 0

    def passes(self, lengths: Sequence[int], budget: int) -> int:
        """See `Method`."""
        return len(split_micro_batches(lengths, budget, self._loss.cost, rows_per_unit=2))

    def gradients(self, ordered: OrderedTokens, rows: slice, share: RankShare, budget: int) -> Tensor:
        """See `Method`: of the mean over the step's pairs; returns its part of that, and the sums of `read`."""
        whole = Whole.of_counts(share.target_counts)
        sums = _nothing(self._recent.device)
        for part, weight in share.weighted_slices(
            split_micro_batches(ordered.lengths[rows], budget, self._loss.cost, rows_per_unit=2)
        ):
            here = slice(rows.start + part.start, rows.start + part.stop)
            pairs = _pairs(self._loss, ordered, here, self._reference, self._tokens)
            loss = part_of_loss(pairs, self._section, whole)
            (loss * weight).backward()  # type: ignore[no-untyped-call]
            sums += _sums(loss.detach(), pairs, self._section, whole) * weight
        return torch.cat([sums[:1] / whole.pairs, sums])

    def count(self, sums: Tensor, share: RankShare) -> None:
        """See `Method`."""
        self._recent += sums[1:]
        self._recent_pairs += Whole.of_counts(share.target_counts).pairs

    def state(self) -> tuple[float, ...]:
        """What `read` would be made of: its sums and, last, the number of pairs; waits for the device."""
        return (*self._recent.tolist(), float(self._recent_pairs))

    def restore(self, state: tuple[float, ...]) -> None:
        """Go on from there."""
        *sums, pairs = state
        self._recent = torch.tensor(sums, dtype=torch.float64, device=self._recent.device)
        self._recent_pairs = int(pairs)

    def read(self, _recent: Meter) -> dict[str, float]:
        """Means over the pairs of all steps since the last call; waits for the device."""
        values = _means(self._recent, self._recent_pairs)
        self._recent, self._recent_pairs = torch.zeros_like(self._recent), 0
        return values

    def mean_loss(self, total: Meter, steps: int) -> float:
        """Over the steps, of each the mean over its pairs."""
        return total.read(per=steps)


class PairEvaluation:
    """Loss and rewards on some pairs, every pair alike; see `trainer.training.evaluation.Evaluation`.

    Attributes:
        extra: what the last evaluation measured beside the loss.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        reference: Tensor,
        loss: CausalLoss,
        section: TrainSection,
        *,
        device: torch.device,
        ranks: RankGroup = ALONE,
    ) -> None:
        self._loss, self._section, self._reference, self._ranks = loss, section, reference, ranks
        self._whole = Whole.of_counts([example.targets for example in examples])
        self.extra: dict[str, float] = {}
        if not examples:
            return
        self._tokens = _targets(examples, device)
        store = TokenStore(examples, device)
        budget = token_budget(2 * section.per_device_eval_batch_size * max(store.lengths), device)
        order = sort_rows(pairs_of(len(examples)), store.lengths, keep_units=True)
        self._share = _share(order, store, loss, budget, ranks)
        self._ordered = store.reorder(self._share.rows)
        self._slices = split_micro_batches(self._ordered.lengths, budget, loss.cost, rows_per_unit=2)

    def loss(self) -> float | None:
        """The loss with the adapter as it is now; None where there are no pairs."""
        if not self._whole.pairs:
            return None
        sums = _nothing(self._reference.device)
        with self._loss.evaluating():
            for rows, weight in self._share.weighted_slices(self._slices):
                pairs = _pairs(self._loss, self._ordered, rows, self._reference, self._tokens)
                loss = part_of_loss(pairs, self._section, self._whole)
                sums += _sums(loss, pairs, self._section, self._whole) * weight
        values = _means(self._ranks.all_reduce(sums), self._whole.pairs)
        loss_alone = values.pop("loss")
        self.extra = {f"eval_{name}": value for name, value in values.items()}
        return loss_alone

    def measured(self) -> dict[str, float]:
        """`extra`; of the adapter as it is now where there is none: a run may go on from its very end."""
        if not self.extra:
            self.loss()
        return dict(self.extra)


def pairs_of(rows: int) -> list[list[int]]:
    """The rows of each pair."""
    return [[row, row + 1] for row in range(0, rows, 2)]


def log_probabilities(
    examples: Sequence[Example], loss: CausalLoss, *, pairs: int, device: torch.device, ranks: RankGroup = ALONE
) -> Tensor:
    """How likely the model finds what each example trains on: float32 [examples], in nats, in their order.

    Args:
        examples: pairs.
        loss: the model's; in whatever state it is.
        pairs: so many of the longest go through the model at once.
        device: where.
        ranks: who shares the pairs; all get all numbers.
    """
    result = torch.zeros(len(examples), dtype=torch.float32, device=device)
    if not examples:
        return result
    store = TokenStore(examples, device)
    budget = token_budget(2 * pairs * max(store.lengths), device)
    for section in _sections(store.lengths):
        share = _share(section, store, loss, budget, ranks)
        ordered = store.reorder(share.rows)
        for part, weight in share.weighted_slices(
            split_micro_batches(ordered.lengths, budget, loss.cost, rows_per_unit=2)
        ):
            result[ordered.rows[part]] -= loss.row_losses(ordered.batch(part), rows_per_unit=2) * weight
    return ranks.all_reduce(result)


def _share(rows: Sequence[int], store: TokenStore, loss: CausalLoss, budget: int, ranks: RankGroup) -> RankShare:
    """This process's share of pairs, sorted by length."""

    def passes(lengths: Sequence[int]) -> int:
        return len(split_micro_batches(lengths, budget, loss.cost, rows_per_unit=2))

    return ranks.share_rows(rows, store.lengths, store.target_counts, passes, rows_per_unit=2)


def _sections(lengths: Sequence[int]) -> Iterator[list[int]]:
    """All pairs by length, so many at a time as are brought into an order at once."""
    section: list[int] = []
    size = 0
    for row in sort_rows(pairs_of(len(lengths)), lengths, keep_units=True):
        section.append(row)
        size += lengths[row]
        if size >= SECTION_TOKENS and len(section) % 2 == 0:
            yield section
            section, size = [], 0
    if section:
        yield section


def _pairs(loss: CausalLoss, ordered: OrderedTokens, rows: slice, reference: Tensor, tokens: Tensor) -> Pairs:
    here = ordered.rows[rows]
    return Pairs.of_rows(-loss.row_losses(ordered.batch(rows), rows_per_unit=2), reference[here], tokens[here])


def _sums(loss: Tensor, pairs: Pairs, section: TrainSection, whole: Whole) -> Tensor:
    """Loss, as if every pair of the whole had its mean, and what is measured: float64 [7]."""
    return torch.cat([(loss.double() * whole.pairs).unsqueeze(0), measure(pairs, section.beta)])


def _means(sums: Tensor, pairs: int) -> dict[str, float]:
    values = (sums / pairs).tolist()
    return dict(zip(("loss", *MEASURED), values, strict=True))


def _nothing(device: torch.device) -> Tensor:
    return torch.zeros(1 + len(MEASURED), dtype=torch.float64, device=device)


def _targets(examples: Sequence[Example], device: torch.device) -> Tensor:
    """Trained tokens of each: float32 [examples]."""
    return torch.tensor([float(example.targets) for example in examples], device=device)
