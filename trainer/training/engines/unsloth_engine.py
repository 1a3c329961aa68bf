"""The engine `unsloth`: optional, for one process with a CUDA GPU.

unsloth replaces the forward passes of the model by its own, with Triton kernels for MLP, LoRA and positions. Which
ones it replaces changes from release to release, and it says so in prints alone. So this engine takes exactly the
tested release, and looks after loading whether types, passes and adapter are those of the job spec.

Environment variables switch off its statistics and its look-ups on a hub, and set the directory of its generated
code. They are set before the import: see `trainer.worker.environment`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from trainer.data.examples.model_config import context_length, read_config
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Loader, Precision, require_gpu
from trainer.training.engines.base_model_loading import require_all_weights
from trainer.training.out_of_memory import raise_if_out_of_memory

TESTED: Final = {"unsloth": "2026.10.9", "unsloth_zoo": "2026.10.9"}
"""Distribution → the release that tests/unsloth ran with."""

_OWN: Final = "unsloth."
"""Where the forward passes that unsloth puts into layers and attention come from."""


class UnslothLoader(Loader):
    """Loads with unsloth's kernels, and attaches the adapter with PEFT.

    unsloth patches transformers and PEFT, so make this object before either is imported.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: no GPU, no package, another release, or unsloth does not start.
    """

    name = "unsloth"
    allows_fused = False

    def __init__(self) -> None:
        require_gpu("train.engine unsloth", "unsloth")
        _require_tested_release()
        try:
            from unsloth import FastLanguageModel  # noqa: PLC0415 -- an optional dependency
        except Exception as error:
            raise JobError(
                ErrorCode.ENGINE_UNAVAILABLE,
                f"unsloth is installed but does not start ({type(error).__name__})",
            ) from error
        self._fast_model: Any = FastLanguageModel

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """Loads the base model and attaches a fresh adapter; the interface is `Loader.load`.

        Raises:
            JobError: `MODEL_INVALID`, `ENGINE_UNAVAILABLE` or `OUT_OF_MEMORY`.
        """
        # unsloth's loader reports neither missing nor unknown tensors.
        require_all_weights(model_dir)
        try:
            model, _ = self._fast_model.from_pretrained(
                # A local directory under its exact name: unsloth otherwise maps names of models to those of a
                # mirror and drops the revision.
                model_name=str(model_dir.resolve()),
                use_exact_model_name=True,
                # No more than the model was made for: unsloth would stretch its rotary positions.
                max_seq_length=min(
                    spec.data.max_length, context_length(read_config(model_dir)) or 1 << 30
                ),
                dtype=precision.weights,
                load_in_4bit=False,  # its default is True; the job spec refuses quantized weights
                trust_remote_code=False,
                local_files_only=True,
                # A bool, never "unsloth": that moves activations over PCIe, which is slow where the link is
                # encrypted.
                use_gradient_checkpointing=spec.train.gradient_checkpointing,
            )
            # Not by unsloth's get_peft_model: it has a list of names for `all-linear`, and trains an embedding in
            # full where an adapter is asked for.
            adapted = attach_adapter(model, spec.lora)
            adapted = self._fast_model.patch_peft_model(
                adapted, use_gradient_checkpointing=spec.train.gradient_checkpointing
            )
        except JobError:
            raise
        except Exception as error:  # a damaged file can make the libraries raise anything
            raise_if_out_of_memory(error)
            raise JobError(
                ErrorCode.MODEL_INVALID,
                f"unsloth cannot load the base model ({type(error).__name__})",
            ) from error
        _require_as_specified(adapted, spec, precision)
        return adapted


def _require_tested_release() -> None:
    """Refuses every release of unsloth but the tested one: its forward passes may compute something else."""
    found = {name: version(name) for name in TESTED}
    if found != TESTED:
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "train.engine unsloth cannot run with this release of unsloth",
            expected=", ".join(f"{name} {release}" for name, release in TESTED.items()),
            found=", ".join(f"{name} {release}" for name, release in found.items()),
            hint="install requirements/image-cuda.txt, or set train.engine: transformers",
        )


def _require_as_specified(model: Any, spec: JobSpec, precision: Precision) -> None:
    """Requires unsloth's own pass in every layer, and weights in the types and of the kind that the job spec says.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`.
    """
    problems = {
        "layers without unsloth's forward pass": _foreign_layers(model),
        f"base weights that are not {precision.weights}": sorted(
            {
                str(p.dtype)
                for p in model.parameters()
                if not p.requires_grad and p.is_floating_point()
            }
            - {str(precision.weights)}
        ),
        "trained weights that are not float32 and LoRA's": sorted(
            name
            for name, p in model.named_parameters()
            if p.requires_grad and (p.dtype is not torch.float32 or ".lora_" not in name)
        ),
        f"modules whose gradient_checkpointing is not {spec.train.gradient_checkpointing}": sorted(
            {
                type(module).__name__
                for module in model.modules()
                if vars(module).get("gradient_checkpointing", spec.train.gradient_checkpointing)
                != spec.train.gradient_checkpointing
            }
        ),
    }
    if found := "; ".join(
        f"{what}: {', '.join(names[:5])}" for what, names in problems.items() if names
    ):
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "unsloth has made another model than the job spec asks for",
            expected="its own forward passes, and the job spec's types, adapter and gradient checkpointing",
            found=found,
            hint="set train.engine: transformers",
        )


def _foreign_layers(model: Any) -> list[str]:
    """Returns the decoder's layers and attentions whose forward pass is not unsloth's; all of them if none is."""
    decoder = model.get_base_model().model
    parts = {f"layers.{n}": layer for n, layer in enumerate(decoder.layers)}
    parts |= {f"{name}.self_attn": layer.self_attn for name, layer in parts.items()}
    return [
        name for name, part in parts.items() if not type(part).forward.__module__.startswith(_OWN)
    ]
