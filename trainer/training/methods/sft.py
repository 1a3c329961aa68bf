"""The method `sft`: supervised fine-tuning.

With T the trained tokens of an optimizer step, in all its rows on all ranks, and x_<t the tokens before t:

    loss of a step    -(1 / |T|) · sum over t in T of log π(x_t | x_<t)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.spec import DataSection
from trainer.training.bin_packing import best_fit_decreasing
from trainer.training.evaluation import Evaluation
from trainer.training.methods.method import Method, MethodInputs, MethodWords, StepRows
from trainer.training.progress import Meter


class SupervisedFineTuning(Method):
    """Minimises the mean negative log-likelihood of the trained tokens of a step.

    Every trained token has the same weight, whatever row, micro-batch or rank it is in. A mean of the means of
    micro-batches would give the tokens of short ones more weight.

    Args:
        inputs: the examples, the model's loss and the sections of the spec.
    """

    name = "sft"
    words = MethodWords(title="LoRA", loss_unit="nats per trained token", has_perplexity=True)

    def __init__(self, inputs: MethodInputs) -> None:
        super().__init__(inputs)
        self.evaluation = Evaluation(
            inputs.dataset.evaluation,
            inputs.loss,
            rows=inputs.train.per_device_eval_batch_size,
            device=inputs.device,
            ranks=inputs.ranks,
        )

    def make_units(self, examples: Sequence[Example], data: DataSection) -> list[list[int]]:
        """Returns the rows of each unit: one, or with packing as many as fit into `data.max_length` tokens."""
        if not data.packing:
            return super().make_units(examples, data)
        # Only the batch size counts bins. Rows of a bin attend to themselves alone, so that packing changes which
        # rows share a step, but not the loss of a row.
        return best_fit_decreasing([example.length for example in examples], data.max_length)

    def compute_gradients(self, step: StepRows, budget: int) -> Tensor:
        """Adds the gradients of the mean over the step's trained tokens.

        Returns:
            float64 [1]: the sum of the losses of this process's trained tokens, in nats.
        """
        total = torch.zeros(1, dtype=torch.float64, device=step.ordered.rows.device)
        start, share = step.rows.start, step.share
        for part, weight in share.weighted_slices(
            self.split(step.ordered.lengths[step.rows], budget)
        ):
            loss_sum = self._loss.total_loss(
                step.ordered.batch(slice(start + part.start, start + part.stop))
            )
            # Divided by the trained tokens of all ranks: the gradients add up over micro-batches and ranks to that
            # of the mean. The weight is 0 for rows that a rank computes only to keep pace with the others.
            (loss_sum * weight / share.trained_tokens).backward()  # type: ignore[no-untyped-call]
            total += loss_sum.detach() * weight
        return total

    def read_metrics(self, recent: Meter) -> dict[str, float]:
        """Returns the loss per trained token since the last call; waits for the device."""
        return {"loss": recent.read()}

    def mean_loss(self, total: Meter, steps: int) -> float:  # noqa: ARG002 -- tokens are counted, not steps
        """Returns the loss per trained token of the run; waits for the device."""
        return total.read()
