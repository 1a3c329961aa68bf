"""The method `kto`: Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv 2402.01306), as TRL has it.

With h the log-ratio of an answer, log π(answer) - log π_ref(answer), s the logistic function, β (`train.beta`) the
strength of the pull to the reference, λ_D and λ_U `train.desirable_weight` and `train.undesirable_weight`:

    reference point z     max(0, mean of h over mismatched answers), without a gradient
    loss of an answer     λ_D (1 - s(β(h - z)))  where its label is true
                          λ_U (1 - s(β(z - h)))  where its label is false

z estimates the KL divergence of the trained model from the reference: a mismatched answer is the answer to one
prompt after another prompt. Each row has one mismatched answer, the same in the whole run. The loss of an
optimizer step is the mean over its answers, and z the mean over their mismatched answers, on all ranks: so the
split into micro-batches does not change it. TRL takes a z for each micro-batch.

As with `dpo`, the reference is the model that training starts from, and its log-probabilities are computed once,
before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from trainer.training.batches import token_budget
from trainer.training.distributed import RankShare
from trainer.training.methods.judged_rows import JudgedRows
from trainer.training.methods.method import (
    Method,
    MethodInputs,
    MethodWords,
    MetricChart,
    MetricTile,
    StepRows,
)
from trainer.training.methods.reference import share_units, sort_units
from trainer.training.methods.step_sums import StepSums
from trainer.training.progress import Meter
from trainer.training.token_store import OrderedTokens, TokenStore

_SUMS: Final = 7
"""Sums over answers: loss; number, rewards and log-probabilities of the desirable ones; rewards and
log-probabilities of the undesirable ones; z."""


class KahnemanTverskyOptimization(Method):
    """Trains on single answers, each desirable or undesirable, relative to the model that training starts from.

    The constructor computes the log-probabilities of the reference, so it must be called while the adapter is
    fresh.

    Args:
        inputs: rows with labels, and `reference`.
    """

    name = "kto"
    words = MethodWords(
        title="LoRA by KTO",
        loss_unit="mean over answers",
        card_sentence=(
            "Trained on desirable and undesirable answers by Kahneman-Tversky Optimization "
            "([arXiv 2402.01306](https://arxiv.org/abs/2402.01306)), with the model before training as reference."
        ),
        card_tags=("kto",),
        tiles=(
            MetricTile("eval_rewards_margins", "reward margin on held-out answers", ".3f"),
            MetricTile("eval_kl", "KL divergence from the start on held-out answers", ".3f"),
        ),
        charts=(
            MetricChart(
                "Reward margin",
                "desirable over undesirable answers, difference of means",
                (("each step", "rewards_margins"), ("held-out answers", "eval_rewards_margins")),
            ),
            MetricChart(
                "Rewards",
                "beta times how much likelier than before training",
                (("desirable", "rewards_chosen"), ("undesirable", "rewards_rejected")),
            ),
            MetricChart(
                "KL divergence from the model before training",
                "nats per answer, estimated from mismatched answers",
                (("each step", "kl"), ("held-out answers", "eval_kl")),
            ),
        ),
    )
    uses_reference = True
    mean_metrics = (
        "kl",
        "rewards_chosen",
        "rewards_rejected",
        "rewards_margins",
        "logps_chosen",
        "logps_rejected",
    )

    def __init__(self, inputs: MethodInputs) -> None:
        if inputs.reference is None:
            raise AssertionError("kto is made with a reference")
        super().__init__(inputs)
        self._section, self._ranks = inputs.train, inputs.ranks
        train, held_out = inputs.dataset.train, inputs.dataset.evaluation
        longest = max(example.length for example in (*train, *held_out))
        with inputs.reference():
            self._rows = JudgedRows.of_examples(train, inputs, longest)
            self.evaluation = JudgedEvaluation(self, inputs, longest)
        self._recent = StepSums(torch.zeros(_SUMS, dtype=torch.float64, device=inputs.device))
        self._ordered: tuple[OrderedTokens, OrderedTokens] | None = None
        self._point: tuple[StepRows, Tensor] | None = None

    def compute_gradients(self, step: StepRows, budget: int) -> Tensor:
        """Adds this rank's contribution to the gradient of the mean over the step's answers.

        Returns:
            float64 [1 + sums]: the rank's contribution to that mean, then the sums that `means_of` divides.
        """
        start, rows = step.rows.start, len(step.share.target_counts)
        parts = [
            (slice(start + part.start, start + part.stop), weight)
            for part, weight in step.share.weighted_slices(
                self.split(step.ordered.lengths[step.rows], budget)
            )
        ]
        # A step that is computed again in smaller micro-batches keeps its z: the other ranks exchange it once.
        if self._point is None or self._point[0] is not step:
            # The mismatched answers in the order of rows: one upload for all steps of a section.
            if self._ordered is None or self._ordered[0] is not step.ordered:
                mismatched = self._rows.mismatched.reorder(step.ordered.row_numbers)
                self._ordered = step.ordered, mismatched
            log_ratios = self.mismatched_ratios(self._ordered[1], self._rows, parts)
            self._point = step, self._ranks.all_reduce(log_ratios) / rows
        point = self._point[1].clamp(min=0)
        sums = torch.zeros(_SUMS, dtype=torch.float64, device=point.device)
        for part, weight in parts:
            loss, part_sums = self.judge_rows(step.ordered, part, self._rows, point)
            # Divided by the answers of all ranks: the gradients add up to that of the mean.
            (loss * weight / rows).backward()  # type: ignore[no-untyped-call]
            sums += part_sums * weight
        self._point = None
        return torch.cat([sums[:1] / rows, sums])

    def mismatched_ratios(
        self, mismatched: OrderedTokens, rows: JudgedRows, parts: Sequence[tuple[slice, float]]
    ) -> Tensor:
        """Returns the sum of the log-ratios of mismatched answers: float64 scalar.

        Args:
            mismatched: prompts with mismatched answers, on the device.
            rows: the rows that they were made from.
            parts: slices of `mismatched`, each with its weight.
        """
        total = torch.zeros((), dtype=torch.float64, device=rows.reference.device)
        # Without dropout, like the reference: its noise would be a part of the estimate.
        with self._loss.evaluating():
            for part, weight in parts:
                log_probability = -self._loss.row_losses(mismatched.batch(part))
                ratios = log_probability - rows.mismatched_reference[mismatched.rows[part]]
                total += ratios.sum(dtype=torch.float64) * weight
        return total

    def judge_rows(
        self, ordered: OrderedTokens, part: slice, rows: JudgedRows, point: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Runs the model on some rows, and computes the losses of their answers.

        Args:
            ordered: rows on the device.
            part: the rows, as a slice of `ordered`.
            rows: labels and reference of all rows of the store that `ordered` was made from.
            point: z, a scalar.

        Returns:
            The sum of the losses, scalar, with its graph; and the sums that `means_of` divides: float64, without a
            graph.
        """
        numbers = ordered.rows[part]
        log_probability = -self._loss.row_losses(ordered.batch(part))
        log_ratio, desirable = log_probability - rows.reference[numbers], rows.desirable[numbers]
        section = self._section
        sign = torch.where(desirable, 1.0, -1.0)
        weight = torch.where(desirable, section.desirable_weight, section.undesirable_weight)
        # 1 - s(x) = s(-x), which keeps its digits where s(x) is almost 1.
        losses = weight * torch.sigmoid(-section.beta * sign * (log_ratio - point))
        chosen, reward = desirable.double(), section.beta * log_ratio.detach().double()
        log_probability = log_probability.detach().double()
        values = (losses.detach().double(), chosen, chosen * reward, chosen * log_probability,
                  (1 - chosen) * reward, (1 - chosen) * log_probability, point.expand_as(chosen))  # fmt: skip
        return losses.sum(), torch.stack([value.sum() for value in values])

    def means_of(self, sums: Tensor, rows: int) -> dict[str, float]:
        """Returns means over the answers by name, `loss` first, named as in TRL; waits for the device.

        The means over desirable (`chosen`) or undesirable (`rejected`) answers are left out where there are none.
        """
        loss, desirable, *rewards_and_logps, point = sums.tolist()
        values = {"loss": loss / rows, "kl": point / rows}
        counts = {"chosen": desirable, "rejected": rows - desirable}
        for (name, count), start in zip(counts.items(), (0, 2), strict=True):
            if count:
                values[f"rewards_{name}"] = rewards_and_logps[start] / count
                values[f"logps_{name}"] = rewards_and_logps[start + 1] / count
        if all(counts.values()):
            values["rewards_margins"] = values["rewards_chosen"] - values["rewards_rejected"]
        return values

    def record_step(self, sums: Tensor, share: RankShare) -> None:
        """Adds a complete step to the sums that the next `read_metrics` averages."""
        self._recent.add(sums[1:], len(share.target_counts))

    def read_metrics(self, _recent: Meter) -> dict[str, float]:
        """Returns means over the answers of all steps since the last call; waits for the device."""
        return self.means_of(*self._recent.take())

    def mean_loss(self, total: Meter, steps: int) -> float:
        """Returns the mean over the steps of each step's mean loss per answer; waits for the device."""
        return total.read(per=steps)

    def state(self) -> tuple[float, ...]:
        """Returns the sums for the next `read_metrics`, and the number of rows as last; waits for the device."""
        return self._recent.state()

    def restore(self, state: tuple[float, ...]) -> None:
        """Continues from the return value of `state`."""
        self._recent.restore(state)


class JudgedEvaluation:
    """Computes the mean loss and the metrics of the held-out answers; z is that of all of them.

    The model must be the reference when an object is made.

    Args:
        method: defines the loss and the metrics.
        inputs: the held-out rows and the model's loss.
        longest: tokens of the longest row that the model is given.

    Attributes:
        extra: metrics of the last evaluation apart from the loss, with the prefix `eval_`.
    """

    def __init__(
        self, method: KahnemanTverskyOptimization, inputs: MethodInputs, longest: int
    ) -> None:
        self.extra: dict[str, float] = {}
        examples, self._loss = inputs.dataset.evaluation, inputs.loss
        self._method, self._ranks, self._count = method, inputs.ranks, len(examples)
        if not examples:
            return
        self._rows = JudgedRows.of_examples(examples, inputs, longest)
        store = TokenStore(examples, inputs.device)
        budget = token_budget(
            inputs.train.per_device_eval_batch_size * max(store.lengths), inputs.device
        )
        share, self._ordered, slices = share_units(
            sort_units(store.lengths, 1), store, inputs.loss, budget, inputs.ranks, 1
        )
        self._mismatched = self._rows.mismatched.reorder(share.rows)
        self._parts = list(share.weighted_slices(slices))

    def loss(self) -> float | None:
        """Returns the loss with the present adapter; None where there are no held-out rows. Sets `extra`."""
        if not self._count:
            return None
        method = self._method
        log_ratios = self._ranks.all_reduce(
            method.mismatched_ratios(self._mismatched, self._rows, self._parts)
        )
        point = (log_ratios / self._count).clamp(min=0)
        sums = torch.zeros(_SUMS, dtype=torch.float64, device=point.device)
        with self._loss.evaluating():
            for part, weight in self._parts:
                sums += method.judge_rows(self._ordered, part, self._rows, point)[1] * weight
        values = method.means_of(self._ranks.all_reduce(sums), self._count)
        mean_loss = values.pop("loss")
        self.extra = {f"eval_{name}": value for name, value in values.items()}
        return mean_loss

    def measured(self) -> dict[str, float]:
        """Returns a copy of `extra`; evaluates first if it is empty, as in a resumed run that had no step left."""
        if not self.extra:
            self.loss()
        return dict(self.extra)
