"""A base model that is spread over several processes: each keeps a part of every layer (FSDP2).

The frozen layers are spread; the adapter, the embedding and the head stay whole everywhere. So gradients, the
optimizer and what is saved are those of a model that is not spread, and no gradient goes through FSDP.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from trainer.errors import ErrorCode, JobError
from trainer.training.distributed import RankGroup
from trainer.training.engines.base import Precision


def loading_precision(precision: Precision, ranks: RankGroup) -> Precision:
    """Where a model is loaded: one that is to be spread, into the machine's memory first."""
    return replace(precision, device=torch.device("cpu")) if ranks.sharded else precision


def shard_base_model(model: Any, precision: Precision, ranks: RankGroup) -> None:
    """Spread the layers of a PEFT model over the processes, where that is asked for; each must call it.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: the weights are quantized, or transformers does not say which of the
            model's parts are its layers.
    """
    if not ranks.sharded:
        return
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 -- for sharding alone
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    causal = model.get_base_model()
    names: Collection[str] = causal._no_split_modules or ()  # noqa: SLF001 -- where transformers names them
    layers = [module for module in causal.modules() if type(module).__name__ in names]
    if not layers or getattr(causal, "is_quantized", False):
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "train.fsdp cannot spread this model",
            expected="an architecture whose layers transformers names, and weights that are not quantized",
            found=type(causal).__name__,
        )
    spread = {one for layer in layers for one in layer.parameters() if not one.requires_grad}
    whole = {one for one in model.parameters() if one not in spread}
    mesh = init_device_mesh(precision.device.type, (ranks.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(causal.base_model, mesh=mesh, ignored_params=whole)  # the root: layers are fetched ahead of use
    for one in whole:
        one.data = one.data.to(precision.device)


def describe_ranks(ranks: RankGroup) -> dict[str, str]:
    """What a report says of it; nothing where there is one process."""
    if ranks.size == 1:
        return {}
    return {"processes": str(ranks.size), "base": "spread over all" if ranks.sharded else "whole in each"}
