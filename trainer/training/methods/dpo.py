"""The method `dpo`: Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290).

The reference is the base model itself: the log-probability of each answer under it is computed once, before the
first step, and stays on the device, one number for each row. So a step costs what a step of supervised fine-tuning
on as many tokens costs, and there is no second model. A run's state holds none of these numbers: a resumed run
computes them again, from the same rows and base model, which gives the same bits on a CPU.
"""

from __future__ import annotations

from torch import Tensor

from trainer.training.methods.dpo_loss import MEASURED, loss_part, measure
from trainer.training.methods.method import MethodInputs, MethodWords, MetricChart, MetricTile
from trainer.training.methods.pair_method import PairMethod, Pairs, PairTotals, log_probabilities


class DirectPreferenceOptimization(PairMethod):
    """Learns from pairs, against the base model.

    Computes the reference's log-probabilities when it is made, so it must be made while the adapter is fresh.

    Args:
        inputs: pairs and `reference`. Where the adapter's initialisation subtracted something from the base
            weights, the reference is the model with its fresh adapter: together they compute what the base model
            computed.
    """

    name = "dpo"
    words = MethodWords(
        title="LoRA by DPO",
        loss_unit="mean over pairs",
        card_sentence=(
            "Trained on pairs of answers by Direct Preference Optimization "
            "([arXiv 2305.18290](https://arxiv.org/abs/2305.18290)), the base model being the reference."
        ),
        card_tags=("dpo",),
        tiles=(
            MetricTile("eval_rewards_accuracies", "held-out pairs in the right order", ".0%"),
            MetricTile("eval_rewards_margins", "reward margin on held-out pairs", ".3f"),
        ),
        charts=(
            MetricChart(
                "Reward margin",
                "chosen over rejected, mean over pairs",
                (("each step", "rewards_margins"), ("held-out pairs", "eval_rewards_margins")),
            ),
            MetricChart(
                "Reward accuracy",
                "share of pairs in the right order",
                (("each step", "rewards_accuracies"), ("held-out pairs", "eval_rewards_accuracies")),
            ),
            MetricChart(
                "Rewards",
                "beta times how much likelier than in the base model",
                (("chosen", "rewards_chosen"), ("rejected", "rewards_rejected")),
            ),
        ),
    )
    uses_reference = True
    measured = MEASURED

    def __init__(self, inputs: MethodInputs) -> None:
        if inputs.reference is None:
            raise AssertionError("dpo is made with a reference")
        micro_batch = inputs.train.per_device_eval_batch_size
        with inputs.reference():
            train, held_out = (
                log_probabilities(
                    examples, inputs.loss, pairs=micro_batch, device=inputs.device, ranks=inputs.ranks
                )
                for examples in (inputs.dataset.train, inputs.dataset.evaluation)
            )
        super().__init__(inputs, train, held_out)

    def loss_part(self, pairs: Pairs, totals: PairTotals) -> Tensor:
        """Returns what some pairs contribute to the mean over all pairs: scalar, with its graph."""
        return loss_part(pairs, self._section, totals)

    def measure(self, pairs: Pairs) -> Tensor:
        """Returns sums over the pairs of what `measured` names: float64 [6], without a graph."""
        return measure(pairs, self._section.beta)
