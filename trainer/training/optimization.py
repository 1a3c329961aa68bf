"""Optimizers and learning rates, under the names that Hugging Face gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trainer.spec import TrainSection


def make_optimizer(parameters: Sequence[nn.Parameter], section: TrainSection) -> torch.optim.Optimizer:
    """The optimizer of a section.

    Both names of torch's AdamW mean its fused form: one launch for all parameters, and nothing that waits for it.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: 8-bit states need a GPU and bitsandbytes.
    """
    common: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    adam: dict[str, Any] = {"betas": (section.adam_beta1, section.adam_beta2), "eps": section.adam_epsilon}
    match section.optim:
        case "adamw_torch" | "adamw_torch_fused":
            return torch.optim.AdamW(parameters, **common, **adam, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, **common)
        case "adafactor":
            from transformers.optimization import Adafactor  # noqa: PLC0415 -- heavy, and seldom wanted

            return Adafactor(  # type: ignore[no-untyped-call]
                list(parameters), **common, scale_parameter=False, relative_step=False
            )
        case "adamw_8bit":
            from trainer.training.engines.base import require_gpu  # noqa: PLC0415 -- only here

            require_gpu("train.optim adamw_8bit", "bitsandbytes")
            from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 -- an optional dependency

            optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **common, **adam)
            return optimizer


class LearningRate:
    """The learning rate at each step: a function of the step alone, so a run resumes without a state of its own.

    Args:
        section: names the schedule.
        total_steps: of the run.
    """

    def __init__(self, section: TrainSection, total_steps: int) -> None:
        from transformers import get_scheduler  # noqa: PLC0415 -- after the choice of the engine

        warmup = section.warmup_steps or math.ceil(section.warmup_ratio * total_steps)
        stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=section.learning_rate)
        scheduler: Any = get_scheduler(
            section.lr_scheduler_type,
            stand_in,
            num_warmup_steps=warmup,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=_whole(section.lr_scheduler_kwargs),
        )
        self._base = section.learning_rate
        self._factor: Callable[[int], float] = scheduler.lr_lambdas[0]

    def at(self, step: int) -> float:
        """For the optimizer step `step`, counted from 1."""
        return self._base * float(self._factor(step - 1))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set it; returns it."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate


def _whole(values: Mapping[str, float]) -> dict[str, float]:
    """Counts as integers: a schedule may use them as such."""
    return {name: int(value) if value.is_integer() else value for name, value in values.items()}
