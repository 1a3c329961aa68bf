"""What a pair of answers costs, given how likely policy and reference find each of them.

With h the log-ratio of an answer, log π(answer) - log π_ref(answer), c the chosen and r the rejected one, s the
logistic function, β the strength of the bond to the reference (`train.beta`), ε the share of wrong labels
(`train.label_smoothing`) and n the tokens of an answer:

| `train.loss_type` | of a pair | from |
|---|---|---|
| `sigmoid` | -log s(β(h_c - h_r)) | Direct Preference Optimization, arXiv 2305.18290, equation 7 |
| `hinge` | max(0, 1 - β(h_c - h_r)) | SLiC's loss with DPO's rewards, arXiv 2309.06657 |
| `ipo` | (h_c/n_c - h_r/n_r - 1/(2β))² | IPO, arXiv 2310.12036, equation 17, with means as its authors use them |
| `robust` | (-(1-ε) log s(β(h_c - h_r)) + ε log s(-β(h_c - h_r))) / (1 - 2ε) | robust DPO, arXiv 2403.00409 |
| `sigmoid_norm` | -log s(β(h_c/n_c - h_r/n_r)) | DPO with means, as TRL has it |
| `nca_pair` | -log s(βh_c) - ½ log s(-βh_c) - ½ log s(-βh_r) | noise contrastive alignment, arXiv 2402.05369 |
| `sppo_hard` | (h_c - 1/(2β))² + (h_r + 1/(2β))² | SPPO, arXiv 2405.00675, equation 4.7 |
| `apo_zero` | 1 - s(βh_c) + s(βh_r) | APO, arXiv 2408.06266, equation 7 |
| `apo_down` | s(βh_c) + 1 - s(β(h_c - h_r)) | the same, equation 8 |
| `sft` | -log π(chosen), for each token of the step alike | |

The loss of an optimizer step is the mean over its pairs, so the cut into micro-batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer.spec import TrainSection


@dataclass(frozen=True)
class Pairs:
    """Some pairs; every attribute is float32 [pairs], on the device.

    Attributes:
        chosen, rejected: log-probability of each answer in the policy, in nats.
        chosen_reference, rejected_reference: the same in the reference.
        chosen_tokens, rejected_tokens: of each answer.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @classmethod
    def of_rows(cls, policy: Tensor, reference: Tensor, tokens: Tensor) -> Pairs:
        """From values of rows of which each two are a chosen and a rejected one: [2 · pairs] each."""
        return cls(*(part for values in (policy, reference, tokens) for part in values.view(-1, 2).unbind(1)))

    @property
    def chosen_ratio(self) -> Tensor:
        """The log-ratio of each chosen answer."""
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> Tensor:
        """The log-ratio of each rejected answer."""
        return self.rejected - self.rejected_reference

    @property
    def margin(self) -> Tensor:
        """How much more the policy has turned to the chosen than to the rejected answers."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_margin(self) -> Tensor:
        """The same, of means over the answers' tokens."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


Term = Callable[[Pairs, float, float], Tensor]
"""Pairs, β and ε → what each pair costs: [pairs]."""


def _robust(pairs: Pairs, beta: float, epsilon: float) -> Tensor:
    logits = beta * pairs.margin
    flipped = epsilon * logsigmoid(-logits)
    return (flipped - (1 - epsilon) * logsigmoid(logits)) / (1 - 2 * epsilon)


def _nca(pairs: Pairs, beta: float, _epsilon: float) -> Tensor:
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _sppo(pairs: Pairs, beta: float, _epsilon: float) -> Tensor:
    half = 0.5 / beta
    return (pairs.chosen_ratio - half).square() + (pairs.rejected_ratio + half).square()


TERMS: Final[Mapping[str, Term]] = {
    "sigmoid": lambda pairs, beta, _: -logsigmoid(beta * pairs.margin),
    "hinge": lambda pairs, beta, _: torch.relu(1 - beta * pairs.margin),
    "ipo": lambda pairs, beta, _: (pairs.mean_margin - 0.5 / beta).square(),
    "robust": _robust,
    "sigmoid_norm": lambda pairs, beta, _: -logsigmoid(beta * pairs.mean_margin),
    "nca_pair": _nca,
    "sppo_hard": _sppo,
    "apo_zero": lambda pairs, beta, _: (
        1 - torch.sigmoid(beta * pairs.chosen_ratio) + torch.sigmoid(beta * pairs.rejected_ratio)
    ),
    "apo_down": lambda pairs, beta, _: (
        torch.sigmoid(beta * pairs.chosen_ratio) + 1 - torch.sigmoid(beta * pairs.margin)
    ),
}
"""By `train.loss_type`; `sft` is not among them, since it counts tokens, not pairs."""


@dataclass(frozen=True)
class Whole:
    """The pairs that a mean is taken over: their number, and the tokens of their chosen answers."""

    pairs: int
    chosen_tokens: int

    @classmethod
    def of_counts(cls, counts: Sequence[int]) -> Whole:
        """From the trained tokens of each row, chosen and rejected in turn."""
        return cls(len(counts) // 2, sum(counts[::2]))


def part_of_loss(pairs: Pairs, section: TrainSection, whole: Whole) -> Tensor:
    """What some pairs add to the mean over all of `whole`: scalar, with its graph."""
    total = pairs.chosen.new_zeros(())
    for name, weight in section.loss_terms:
        if name == "sft":
            total = total - weight / whole.chosen_tokens * pairs.chosen.sum()
        else:
            each = TERMS[name](pairs, section.beta, section.label_smoothing)
            total = total + weight / whole.pairs * each.sum()
    return total


MEASURED: Final = ("rewards_chosen", "rewards_rejected", "rewards_accuracies", "rewards_margins", "logps_chosen",
                   "logps_rejected")  # fmt: skip
"""Means over pairs, as TRL names them; a reward is β times the log-ratio, and a pair is accurate where the chosen
answer has the higher one."""


def measure(pairs: Pairs, beta: float) -> Tensor:
    """Sums over the pairs of what `MEASURED` names: float64 [6], without a graph."""
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    values = (chosen, rejected, chosen > rejected, chosen - rejected, pairs.chosen, pairs.rejected)
    return torch.stack([value.detach().sum(dtype=torch.float64) for value in values])
