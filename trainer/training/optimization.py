"""Optimizers and learning-rate schedules. Names and meaning are those of transformers' `TrainingArguments`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trainer.spec import TrainSection


def make_optimizer(parameters: Sequence[nn.Parameter], section: TrainSection) -> torch.optim.Optimizer:
    """Creates the optimizer that `train.optim` names.

    `adamw_torch` and `adamw_torch_fused` both select the fused AdamW: one kernel launch updates all parameters,
    and the host does not wait for it.

    Args:
        parameters: the trained parameters.
        section: name and hyperparameters of the optimizer.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: `adamw_8bit` without a GPU or without bitsandbytes.
    """
    common: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    adam: dict[str, Any] = {"betas": (section.adam_beta1, section.adam_beta2), "eps": section.adam_epsilon}
    match section.optim:
        case "adamw_torch" | "adamw_torch_fused":
            return torch.optim.AdamW(parameters, **common, **adam, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, **common)
        case "adafactor":
            from transformers.optimization import Adafactor  # noqa: PLC0415 -- slow to import

            # Adafactor's own schedule is off: with `relative_step` it would ignore the rate of `LearningRate`, and
            # with `scale_parameter` it would multiply the rate by the root mean square of each parameter.
            return Adafactor(  # type: ignore[no-untyped-call]
                list(parameters), **common, scale_parameter=False, relative_step=False
            )
        case "adamw_8bit":
            from trainer.training.engines.base import require_gpu  # noqa: PLC0415 -- only this case needs an engine

            require_gpu("train.optim adamw_8bit", "bitsandbytes")
            from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 -- an optional dependency

            # Both moments in 8 bits with a scale for each block of numbers: a quarter of the memory of float32.
            optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **common, **adam)
            return optimizer


class LearningRate:
    """Computes the learning rate of a step as base rate · factor(step).

    The rate depends on the step's number alone, not on earlier calls. So a checkpoint contains no schedule, and a
    resumed run has bitwise the same rates.

    Args:
        section: base rate, schedule, and warm-up.
        total_steps: number of optimizer steps of the run.
    """

    def __init__(self, section: TrainSection, total_steps: int) -> None:
        from transformers import get_scheduler  # noqa: PLC0415 -- after the choice of the engine

        # As in transformers: a number of steps has precedence over the ratio, which is rounded up.
        warmup = section.warmup_steps or math.ceil(section.warmup_ratio * total_steps)
        # Schedules use some values as counts, such as `num_stable_steps`, and need an int for them.
        schedule_options = {
            name: int(value) if value.is_integer() else value
            for name, value in section.lr_scheduler_kwargs.items()
        }
        # `get_scheduler` requires an optimizer. This one is never stepped: only the schedule's factor is used.
        unused_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=section.learning_rate)
        scheduler: Any = get_scheduler(
            section.lr_scheduler_type,
            unused_optimizer,
            num_warmup_steps=warmup,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=schedule_options,
        )
        self._base = section.learning_rate
        self._factor: Callable[[int], float] = scheduler.lr_lambdas[0]

    def at(self, step: int) -> float:
        """Returns the learning rate of an optimizer step; steps are counted from 1."""
        # The schedule counts completed steps, so the first step has factor(0): 0 with a linear warm-up.
        return self._base * float(self._factor(step - 1))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Sets the learning rate of a step in all parameter groups; returns the rate."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate
