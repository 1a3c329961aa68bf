"""What a run keeps beside its inputs: running totals, the state that it can resume from, and its outcome."""

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
        eval_loss_before: loss per token on the held-out rows, before the first step; None where there are none.
        eval_loss_after: the same after the last step.
        train_loss: loss per trained token, over all tokens that were trained on.
        steps: optimizer steps.
        trained_tokens: tokens whose prediction entered the loss, counted in each epoch.
        input_tokens: tokens that went through the model, without padding.
        train_seconds: time spent in optimizer steps.
        eval_seconds: time spent in evaluations.
        pairs: for a method that learns from pairs: the last evaluation's means over the held-out pairs, by name.
        warnings: what the provider should know.
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
"""Sum of losses, trained tokens, input tokens."""


@dataclass(frozen=True)
class TrainState:
    """All that a run keeps beside its inputs, between two optimizer steps; the rest follows from its inputs.

    Attributes:
        step: optimizer steps done; with the seed it determines the next rows and the learning rate.
        adapter: the trained parameters, in the model's order.
        optimizer: its `state_dict`.
        random: states of torch's generators: the CPU's, and the GPU's where there is one.
        totals: of all steps.
        budget: tokens that a micro-batch may have.
        best: the best evaluation so far.
        recent: totals since the last report of a loss.
        since: seconds of training at that report.
        last: step and loss of the last evaluation.
        before: loss on the held-out rows before the first step.
        train_seconds: spent in optimizer steps so far.
        eval_seconds: spent in evaluations so far.
        method_state: what the method needs for the next logged values; see `Method.state`.
        warnings: what the provider should know.
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
    """Set torch's generators to what `random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


class Meter:
    """Adds up losses on the device, and counts tokens on the host.

    Args:
        device: holds the sum.
        since: seconds of training at the start of the count.
        totals: to continue from.
    """

    def __init__(self, device: torch.device, *, since: float = 0.0, totals: Totals = (0.0, 0, 0)) -> None:
        self.device = device
        self.since = since
        loss, self.trained, self.inputs = totals
        self._sum = torch.full((), loss, dtype=torch.float64, device=device)

    def add(self, summed: Tensor, *, trained: int, inputs: int) -> None:
        """Add a step: its loss, its trained tokens and its input tokens."""
        self._sum += summed
        self.trained += trained
        self.inputs += inputs

    def totals(self) -> Totals:
        """Returns loss, trained tokens and input tokens; waits for the device."""
        return float(self._sum.item()), self.trained, self.inputs

    def read(self, *, per: int | None = None) -> float:
        """Returns the loss per trained token, or divided by `per`; 0 without tokens. Waits for the device."""
        return float(self._sum.item()) / (per or max(self.trained, 1))
