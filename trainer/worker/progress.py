"""What a run has beside its inputs: running totals, the state it can go on from, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.worker.patience import Best


@dataclass(frozen=True)
class Outcome:
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
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainState:
    """All that a run has beside its inputs, between two optimizer steps; the rest follows from these.

    Attributes:
        step: optimizer steps done; with the seed it says which rows come next, and the learning rate.
        adapter: the trained parameters, in the model's order.
        optimizer: its `state_dict`.
        random: states of torch's generators: the CPU's, and the GPU's where there is one.
        totals: sum of losses, trained tokens, input tokens.
        budget: tokens that go through the model at once.
        best: the best evaluation so far.
    """

    step: int
    adapter: tuple[Tensor, ...]
    optimizer: dict[str, Any]
    random: tuple[Tensor, ...]
    totals: tuple[float, int, int]
    budget: int
    best: Best | None = None


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

    def __init__(
        self, device: torch.device, *, since: float = 0.0, totals: tuple[float, int, int] = (0.0, 0, 0)
    ) -> None:
        self.device = device
        self.since = since
        loss, self.trained, self.inputs = totals
        self._sum = torch.full((), loss, dtype=torch.float64, device=device)

    def add(self, summed: Tensor, *, trained: int, inputs: int) -> None:
        """Add a step: its loss, and how many tokens it trained on and read."""
        self._sum += summed
        self.trained += trained
        self.inputs += inputs

    def totals(self) -> tuple[float, int, int]:
        """Loss, trained tokens, tokens read; waits for the device."""
        return float(self._sum.item()), self.trained, self.inputs

    def read(self) -> float:
        """Loss per trained token, 0 where there was none; waits for the device."""
        return float(self._sum.item()) / max(self.trained, 1)
