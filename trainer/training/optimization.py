"""Optimizers. Names and meaning are those of transformers' `TrainingArguments`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from trainer.spec import TrainSection

_RATE_RATIO: Final = "lr_ratio"
"""Key of a parameter group: its learning rate divided by that of the groups without this key."""


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], section: TrainSection
) -> torch.optim.Optimizer:
    """Creates the optimizer that `train.optim` names.

    `adamw_torch` and `adamw_torch_fused` both select the fused AdamW: one kernel launch updates all parameters,
    and the host does not wait for it.

    Args:
        parameters: the trained parameters by name, in the model's order.
        section: name and hyperparameters of the optimizer; with `loraplus_lr_ratio` the matrices B are a group of
            their own (LoRA+, arXiv 2402.12354, section 4).

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: `adamw_8bit` without a GPU or without bitsandbytes.
    """
    common: dict[str, Any] = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    adam: dict[str, Any] = {
        "betas": (section.adam_beta1, section.adam_beta2),
        "eps": section.adam_epsilon,
    }
    groups = _parameter_groups(parameters, section)
    match section.optim:
        case "adamw_torch" | "adamw_torch_fused":
            return torch.optim.AdamW(groups, **common, **adam, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, **common)
        case "adafactor":
            from transformers.optimization import Adafactor  # noqa: PLC0415 -- slow to import

            # Adafactor's own schedule is off: with `relative_step` it would ignore the rate of the job's schedule,
            # and with `scale_parameter` it would multiply the rate by the root mean square of each parameter.
            return Adafactor(  # type: ignore[no-untyped-call]
                groups, **common, scale_parameter=False, relative_step=False
            )
        case "adamw_8bit":
            from trainer.training.engines.base import require_gpu  # noqa: PLC0415 -- only this case needs an engine

            require_gpu("train.optim adamw_8bit", "bitsandbytes")
            from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 -- an optional dependency

            # Both moments in 8 bits with a scale for each block of numbers: a quarter of the memory of float32.
            optimizer: torch.optim.Optimizer = AdamW8bit(groups, **common, **adam)
            return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameter groups; that of the matrices B is a multiple of it with LoRA+."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_RATE_RATIO, 1.0)


def _parameter_groups(
    parameters: Mapping[str, nn.Parameter], section: TrainSection
) -> list[dict[str, Any]]:
    ratio = section.loraplus_lr_ratio
    if ratio is None:
        return [{"params": list(parameters.values())}]
    # PEFT names them `….lora_B.default.weight`, those of an embedding `….lora_embedding_B.default`.
    is_b = {
        name: any(part in ("lora_B", "lora_embedding_B") for part in name.split("."))
        for name in parameters
    }
    others = [parameter for name, parameter in parameters.items() if not is_b[name]]
    return [
        {"params": others},
        {
            "params": [parameter for name, parameter in parameters.items() if is_b[name]],
            _RATE_RATIO: ratio,
        },
    ]
