"""Computes the loss of a pair for `dpo` from log-probabilities under the trained model and the reference.

With h the log-ratio of an answer, log π(answer) - log π_ref(answer), c the chosen and r the rejected one, s the
logistic function, β (`train.beta`) the strength of the pull to the reference, ε the share of wrong labels
(`train.label_smoothing`) and n the tokens of an answer:

| `train.loss_type` | loss of a pair | source |
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
| `sft` | -log π(chosen), as a mean over the tokens of the chosen answers of the step | |

The loss of an optimizer step is the mean over its pairs, so the split into micro-batches does not change it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer.spec import TrainSection
from trainer.training.methods.pair_method import Pairs, PairTotals

Term = Callable[[Pairs, float, float], Tensor]
"""Maps pairs, β and ε to the loss of each pair: float32 [pairs]."""


def _robust(pairs: Pairs, beta: float, epsilon: float) -> Tensor:
    # An unbiased estimate of the loss with correct labels: where a share ε of the labels is flipped, the
    # expectation of this difference is (1 - 2ε) times that loss. So ε must be below 1/2.
    logits = beta * pairs.margin
    flipped = epsilon * logsigmoid(-logits)
    return (flipped - (1 - epsilon) * logsigmoid(logits)) / (1 - 2 * epsilon)


def _nca(pairs: Pairs, beta: float, _epsilon: float) -> Tensor:
    # Unlike the losses of the margin, this one also rewards the likelihood of the chosen answer by itself.
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _sppo(pairs: Pairs, beta: float, _epsilon: float) -> Tensor:
    # Regression: the log-ratio of the chosen answer to +1/(2β), that of the rejected one to -1/(2β).
    half = 0.5 / beta
    return (pairs.chosen_ratio - half).square() + (pairs.rejected_ratio + half).square()


# In the symbols of the table above, margin is h_c - h_r, and mean_margin is h_c/n_c - h_r/n_r. `logsigmoid` stays
# finite where sigmoid(x) is rounded to 0 and log(sigmoid(x)) would be -infinity.
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
"""Maps `train.loss_type` to its term. `sft` is missing: it is a mean over tokens, not over pairs."""


def loss_part(pairs: Pairs, section: TrainSection, totals: PairTotals) -> Tensor:
    """Computes the contribution of some pairs to the mean over all pairs of a step.

    Args:
        pairs: log-probabilities with their graph.
        section: the terms, their weights, β and ε.
        totals: number of pairs and of chosen tokens in the step, on all ranks.

    Returns:
        Scalar, with its graph.
    """
    total = pairs.chosen.new_zeros(())
    # Divided by the totals of the step, not of these pairs: so the micro-batches add up to the mean.
    for name, weight in section.loss_terms:
        if name == "sft":
            # A mean over tokens as in supervised fine-tuning: long answers count more than short ones.
            total = total - weight / totals.chosen_tokens * pairs.chosen.sum()
        else:
            pair_losses = TERMS[name](pairs, section.beta, section.label_smoothing)
            total = total + weight / totals.pairs * pair_losses.sum()
    return total


MEASURED: Final = ("rewards_chosen", "rewards_rejected", "rewards_accuracies", "rewards_margins", "logps_chosen",
                   "logps_rejected")  # fmt: skip
"""Metrics, named as in TRL. A reward is β times the log-ratio; a pair is accurate where the chosen answer has the
higher reward."""


def measure(pairs: Pairs, beta: float) -> Tensor:
    """Returns the sums over the pairs of the metrics in `MEASURED`: float64 [6], without a graph."""
    # In the order of `MEASURED`. A pair with equal rewards does not count as accurate.
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    values = (chosen, rejected, chosen > rejected, chosen - rejected, pairs.chosen, pairs.rejected)
    return torch.stack([value.detach().sum(dtype=torch.float64) for value in values])
