"""The data that a run produces beside the adapter: running totals, the resumable state, and the outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.training.early_stopping import BestEvaluation


@dataclass(frozen=True)
class TrainingOutcome:
    """The numbers of a finished training.

    Attributes:
        eval_loss_before: loss on the held-out rows before the first step, in the unit of the method (nats per
            token for `sft`); None where there are no held-out rows.
        eval_loss_after: the same with the adapter that the result contains.
        train_loss: mean loss of the run, in the same unit.
        steps: optimizer steps.
        trained_tokens: tokens whose prediction entered the loss, counted in each epoch.
        input_tokens: tokens that went through the model, without padding.
        train_seconds: time spent in optimizer steps.
        eval_seconds: time spent in evaluations.
        pairs: means of the last evaluation over the held-out pairs, by name; empty unless the method uses pairs.
        warnings: messages for the provider.
    """

    eval_loss_before: float | None
    eval_loss_after: float | None
    train_loss: float
    steps: int
    trained_tokens: int
    input_tokens: int
    train_seconds: float
    eval_seconds: float
    pairs: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Totals = tuple[float, int, int]
"""Sum of the losses, number of trained tokens, number of input tokens."""


@dataclass(frozen=True)
class TrainState:
    """The state of a run between two optimizer steps. With the run's inputs it determines all later steps.

    Attributes:
        step: number of optimizer steps so far; with the seed it determines the next rows and the learning rate.
        adapter: the trained parameters, in the model's order.
        optimizer: `state_dict` of the optimizer.
        random: states of torch's generators, for dropout: the CPU's, and the GPU's where there is one.
        totals: totals of all steps.
        budget: maximum number of tokens in a micro-batch. It belongs to the state because running out of memory
            lowers it, and another split into micro-batches changes the order in which floats are added.
        best: the best evaluation so far.
        recent: totals since the loss was last logged.
        since: training time when the loss was last logged, in seconds.
        last: step and loss of the most recent evaluation.
        before: loss on the held-out rows before the first step.
        train_seconds: time spent in optimizer steps so far.
        eval_seconds: time spent in evaluations so far.
        method_state: the return value of `Method.state`.
        warnings: messages for the provider.
    """

    step: int
    adapter: tuple[Tensor, ...]
    optimizer: dict[str, Any]
    random: tuple[Tensor, ...]
    totals: Totals
    budget: int
    best: BestEvaluation | None = None
    recent: Totals = (0.0, 0, 0)
    since: float = 0.0
    last: tuple[int, float] | None = None
    before: float | None = None
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    method_state: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Returns the states of torch's generators: the CPU's, and the GPU's if that is the device."""
    gpu = device.type == "cuda"
    return (torch.get_rng_state(), torch.cuda.get_rng_state()) if gpu else (torch.get_rng_state(),)


def restore_random(states: tuple[Tensor, ...]) -> None:
    """Sets torch's generators to the return value of `random_state`."""
    # A checkpoint of a GPU run has two states. On a CPU, a run has only the first.
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


class Meter:
    """Adds up losses on the device and counts tokens on the host.

    The sum is float64: a run adds the losses of millions of tokens, and a float32 sum would lose those of later
    steps in its rounding. It stays on the device, so that `add` does not wait for the step.

    Args:
        device: device of the sum.
        since: training time at the start of the count, in seconds.
        totals: totals to continue from.
    """

    def __init__(
        self, device: torch.device, *, since: float = 0.0, totals: Totals = (0.0, 0, 0)
    ) -> None:
        self.device = device
        self.since = since
        loss, self.trained, self.inputs = totals
        self._sum = torch.full((), loss, dtype=torch.float64, device=device)

    def add(self, summed: Tensor, *, trained: int, inputs: int) -> None:
        """Adds the loss, the trained tokens and the input tokens of a step; does not wait for the device."""
        self._sum += summed
        self.trained += trained
        self.inputs += inputs

    def totals(self) -> Totals:
        """Returns loss, trained tokens and input tokens; waits for the device."""
        return float(self._sum.item()), self.trained, self.inputs

    def read(self, *, per: int | None = None) -> float:
        """Returns the loss per trained token, or divided by `per`; 0 without tokens. Waits for the device."""
        # Steps of a private run may be empty; then the sum is 0, and so is the quotient.
        return float(self._sum.item()) / (per or max(self.trained, 1))
