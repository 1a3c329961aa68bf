"""What a run has beside its inputs: running totals, the state it can go on from, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.training.early_stopping import BestEvaluation


@dataclass(frozen=True)
class TrainingOutcome:
    """What training came to.

    Attributes:
        eval_loss_before: loss per token on the held-out rows, before the first step; None where there are none.
        eval_loss_after: the same after the last step.
        train_loss: loss per trained token, over all tokens that were trained on.
        steps: optimizer steps.
        trained_tokens: tokens that the loss was taken on, counted each time.
        input_tokens: tokens that went through the model, without padding.
        train_seconds: time spent in optimizer steps.
        eval_seconds: time spent in evaluations.
        pairs: of preference training: the last evaluation's means over the held-out pairs, by name.
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
    """All that a run has beside its inputs, between two optimizer steps; the rest follows from these.

    Attributes:
        step: optimizer steps done; with the seed it says which rows come next, and the learning rate.
        adapter: the trained parameters, in the model's order.
        optimizer: its `state_dict`.
        random: states of torch's generators: the CPU's, and the GPU's where there is one.
        totals: of the whole run.
        budget: tokens that go through the model at once.
        best: the best evaluation so far.
        recent: totals since the last report of a loss.
        since: seconds of training at that report.
        last: step and loss of the last evaluation.
        before: loss on the held-out rows before the first step.
        train_seconds: spent in optimizer steps so far.
        eval_seconds: spent in evaluations so far.
        pairs: of preference training, what the next logged values are made of; see `Preference.state`.
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
    pairs: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """States of torch's generators: the CPU's, and the GPU's if that is where training is."""
    gpu = device.type == "cuda"
    return (torch.get_rng_state(), torch.cuda.get_rng_state()) if gpu else (torch.get_rng_state(),)


def restore_random(states: tuple[Tensor, ...]) -> None:
    """Put `random_state` back."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


class Meter:
    """Adds up losses on the device, and counts tokens on the host."""

    def __init__(self, device: torch.device, *, since: float = 0.0, totals: Totals = (0.0, 0, 0)) -> None:
        self.device = device
        self.since = since
        loss, self.trained, self.inputs = totals
        self._sum = torch.full((), loss, dtype=torch.float64, device=device)

    def add(self, summed: Tensor, *, trained: int, inputs: int) -> None:
        """Add a step: its loss, and how many tokens it trained on and read."""
        self._sum += summed
        self.trained += trained
        self.inputs += inputs

    def totals(self) -> Totals:
        """Loss, trained tokens, tokens read; waits for the device."""
        return float(self._sum.item()), self.trained, self.inputs

    def read(self, *, per: int | None = None) -> float:
        """Loss per trained token, 0 where there was none, or by another divisor; waits for the device."""
        return float(self._sum.item()) / (per or max(self.trained, 1))
