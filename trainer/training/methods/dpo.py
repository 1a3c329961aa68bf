"""The method `dpo`: Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290).

The reference is the model that training starts from: the base model, or with `lora.start_from` the base model with
the earlier adapter. The log-probability of each answer under it is computed once, before the first step, and stays
on the device as one number for each row. So there is no second model in memory, and a step costs as much as a step
of supervised fine-tuning on the same number of tokens. Checkpoints do not contain these numbers: a resumed run
computes them again from the same rows and files. On a CPU the result is bitwise the same.
"""

from __future__ import annotations

from torch import Tensor

from trainer.training.methods.dpo_loss import MEASURED, loss_part, measure
from trainer.training.methods.method import MethodInputs, MethodWords, MetricChart, MetricTile
from trainer.training.methods.pair_method import PairMethod, Pairs, PairTotals
from trainer.training.methods.reference import log_probabilities


class DirectPreferenceOptimization(PairMethod):
    """Trains on pairs of answers relative to the model that training starts from.

    The constructor computes the log-probabilities of the reference, so it must be called before the first step.

    Args:
        inputs: pairs and `reference`.
    """

    name = "dpo"
    words = MethodWords(
        title="LoRA by DPO",
        loss_unit="mean over pairs",
        card_sentence=(
            "Trained on pairs of answers by Direct Preference Optimization "
            "([arXiv 2305.18290](https://arxiv.org/abs/2305.18290)), with the model before training as reference."
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
                (
                    ("each step", "rewards_accuracies"),
                    ("held-out pairs", "eval_rewards_accuracies"),
                ),
            ),
            MetricChart(
                "Rewards",
                "beta times how much likelier than before training",
                (("chosen", "rewards_chosen"), ("rejected", "rewards_rejected")),
            ),
        ),
    )
    uses_reference = True
    measured = MEASURED

    def __init__(self, inputs: MethodInputs) -> None:
        if inputs.reference is None:
            raise AssertionError("dpo is made with a reference")
        # There is no backward pass here, so the micro-batches are those of an evaluation.
        micro_batch = inputs.train.per_device_eval_batch_size
        with inputs.reference():
            train, held_out = (
                log_probabilities(
                    examples,
                    inputs.loss,
                    units=micro_batch,
                    rows_per_unit=self.rows_per_unit,
                    device=inputs.device,
                    ranks=inputs.ranks,
                )
                for examples in (inputs.dataset.train, inputs.dataset.evaluation)
            )
        super().__init__(inputs, train, held_out)

    def loss_part(self, pairs: Pairs, totals: PairTotals) -> Tensor:
        """Returns the contribution of some pairs to the mean over all pairs: scalar, with its graph."""
        return loss_part(pairs, self._section, totals)

    def measure(self, pairs: Pairs) -> Tensor:
        """Returns the sums over the pairs of the metrics in `measured`: float64 [6], without a graph."""
        return measure(pairs, self._section.beta)
