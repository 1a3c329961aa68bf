"""The method `orpo`: Odds Ratio Preference Optimization (Hong, Lee and Thorne 2024, arXiv 2403.07691).

With p the log-probability of an answer divided by its tokens, c the chosen and r the rejected one, s the logistic
function and λ (`train.beta`, as in TRL's `ORPOConfig`) the weight of the preference:

    odds of an answer    exp(p) / (1 - exp(p))
    loss of a pair       -p_c - λ log s(log odds(c) - log odds(r))

The first term raises the likelihood of the chosen answer, the second one its odds relative to the rejected answer.
There is no reference model. As in the paper, both terms are means over pairs; TRL averages the first one over the
tokens of a batch instead.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer.training.methods.method import MethodWords, MetricChart, MetricTile
from trainer.training.methods.pair_method import PairMethod, Pairs, PairTotals

MEASURED: Final = ("rewards_chosen", "rewards_rejected", "rewards_accuracies", "rewards_margins", "logps_chosen",
                   "logps_rejected", "nll_loss", "log_odds_ratio", "log_odds_chosen")  # fmt: skip
"""Metrics, named as in TRL. A reward is λ times p, `logps` are p; `log_odds_chosen` is the difference of the log
odds, and `log_odds_ratio` the logarithm of the logistic function of that difference."""


class OddsRatioPreferenceOptimization(PairMethod):
    """Trains on pairs of answers without a reference.

    Args:
        inputs: pairs, the model's loss and the sections of the spec.
    """

    name = "orpo"
    words = MethodWords(
        title="LoRA by ORPO",
        loss_unit="mean over pairs",
        card_sentence=(
            "Trained on pairs of answers by Odds Ratio Preference Optimization "
            "([arXiv 2403.07691](https://arxiv.org/abs/2403.07691)), without a reference model."
        ),
        card_tags=("orpo",),
        tiles=(
            MetricTile("eval_rewards_accuracies", "held-out pairs in the right order", ".0%"),
            MetricTile("eval_log_odds_chosen", "log odds ratio on held-out pairs", ".3f"),
        ),
        charts=(
            MetricChart(
                "Log odds ratio",
                "chosen over rejected, mean over pairs",
                (("each step", "log_odds_chosen"), ("held-out pairs", "eval_log_odds_chosen")),
            ),
            MetricChart(
                "Reward accuracy",
                "share of pairs in the right order",
                (
                    ("each step", "rewards_accuracies"),
                    ("held-out pairs", "eval_rewards_accuracies"),
                ),
            ),
            MetricChart(
                "Loss of the chosen answers",
                "nats per token, mean over pairs",
                (("each step", "nll_loss"), ("held-out pairs", "eval_nll_loss")),
            ),
        ),
    )
    mean_metrics = (*PairMethod.mean_metrics, "nll_loss", "log_odds_ratio", "log_odds_chosen")
    measured = MEASURED

    def loss_part(self, pairs: Pairs, totals: PairTotals) -> Tensor:
        """Returns the contribution of some pairs to the mean over all pairs: scalar, with its graph."""
        chosen, rejected = mean_log_probabilities(pairs)
        # As one function: log(sigmoid(x)) would be -infinity for very negative x.
        preference = logsigmoid(log_odds_ratio(chosen, rejected))
        return (-chosen - self._section.beta * preference).sum() / totals.pairs

    def measure(self, pairs: Pairs) -> Tensor:
        """Returns the sums over the pairs of the metrics in `measured`: float64 [9], without a graph."""
        chosen, rejected = (value.detach() for value in mean_log_probabilities(pairs))
        odds = log_odds_ratio(chosen, rejected)
        beta = self._section.beta
        values = (
            beta * chosen,
            beta * rejected,
            chosen > rejected,
            beta * (chosen - rejected),
            chosen,
            rejected,
            -chosen,
            logsigmoid(odds),
            odds,
        )
        return torch.stack([value.sum(dtype=torch.float64) for value in values])


def mean_log_probabilities(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Returns p of the chosen and of the rejected answers, in nats per token: float32 [pairs] each."""
    return pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Returns log(odds(chosen) / odds(rejected)) from mean log-probabilities: [pairs], with its graph."""
    # An answer with q = 1 has infinite odds, and their gradient is NaN. So log q is limited to -eps, the
    # resolution of the type. Above this limit the gradient of the odds is 0.
    limit = -torch.finfo(chosen.dtype).eps
    bounded = (log_probability.clamp(max=limit) for log_probability in (chosen, rejected))
    # log(q / (1 - q)) = log q - log(1 - q); 1 - q is -expm1(log q), which keeps its digits where q is almost 1.
    chosen_log_odds, rejected_log_odds = (log_q - (-torch.expm1(log_q)).log() for log_q in bounded)
    return chosen_log_odds - rejected_log_odds
