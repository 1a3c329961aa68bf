"""Optimizers. Names and meaning are those of transformers' `TrainingArguments`."""

from __future__ import annotations

from collections.abc import Sequence
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

            # Adafactor's own schedule is off: with `relative_step` it would ignore the rate of the job's schedule,
            # and with `scale_parameter` it would multiply the rate by the root mean square of each parameter.
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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
