"""A base model that is sharded over several ranks: each holds a part of every layer (FSDP2).

FSDP2 gathers a layer's weights from all ranks when the layer is run and frees them afterwards. Here only the
frozen layers are sharded; the adapter, the embedding and the head are replicated on every rank. So gradients,
optimizer state and saved files are the same as without sharding, and no gradient goes through FSDP.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trainer.errors import ErrorCode, JobError
from trainer.training.distributed import RankGroup
from trainer.training.engines.base import Precision


def shard_base_model(model: Any, precision: Precision, ranks: RankGroup) -> None:
    """Shards the layers of a PEFT model over the ranks, where the job spec asks for it; every rank must call it.

    Args:
        model: the model, loaded to the CPU.
        precision: device and number formats of the sharded model.
        ranks: the ranks that train together.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: the weights are quantized, or transformers does not name the layers of this
            architecture.
    """
    if not ranks.sharded:
        return
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 -- for sharding alone
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    causal = model.get_base_model()
    layer_names: Collection[str] = causal._no_split_modules or ()  # noqa: SLF001 -- where transformers names them
    layers = [module for module in causal.modules() if type(module).__name__ in layer_names]
    if not layers or getattr(causal, "is_quantized", False):
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "train.fsdp cannot shard this model",
            expected="an architecture whose layers transformers names, and weights that are not quantized",
            found=type(causal).__name__,
        )

    sharded = {
        weight for layer in layers for weight in layer.parameters() if not weight.requires_grad
    }
    replicated = {parameter for parameter in model.parameters() if parameter not in sharded}
    mesh = init_device_mesh(precision.device.type, (ranks.size,))
    # Inside out, as FSDP2 demands: the layers first, then their parent as the root, which fetches the next layer
    # while one is running.
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=replicated)
    fully_shard(causal.base_model, mesh=mesh, ignored_params=replicated)
    # FSDP moves only what it shards to the GPU.
    for parameter in replicated:
        parameter.data = parameter.data.to(precision.device)
