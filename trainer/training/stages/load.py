"""The second stage: the base model with its adapter and its loss, and the checkpoint of a resumed run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.data.examples.example_set import Dataset
from trainer.errors import ErrorCode, JobError
from trainer.model_files.companion_files import companion_bytes
from trainer.models import MAX_COPIED_BYTES, MAX_TRAINED_PARAMETERS, Activity
from trainer.training.adapter import save_initial_adapter
from trainer.training.adapter_loading import load_start_adapter
from trainer.training.checkpoint import ResumedState, read_state
from trainer.training.compilation import Compilation
from trainer.training.engines.base import Loader, Precision, choose_precision
from trainer.training.events import OutputSizeKnown, PreparationAdvanced
from trainer.training.loss import CausalLoss
from trainer.training.placement import Placement, read_placement
from trainer.training.run_inputs import RunInputs
from trainer.training.sharding import shard_base_model
from trainer.training.stages.prepare import PreparedData
from trainer.training.stages.run_context import RunContext


@dataclass(frozen=True)
class LoadedModel:
    """The base model with its adapter.

    Attributes:
        model: PEFT model.
        precision: device and number types.
        loss: loss of the model.
        engine: name of the engine that loaded it.
        initial_adapter: directory with the fresh adapter, where its initialisation changed the base weights.
        resumed: the checkpoint that the run continues from.
        placement: the modules that are trained.
        warnings: messages for the provider.
    """

    model: Any
    precision: Precision
    loss: CausalLoss
    engine: str
    initial_adapter: Path | None
    resumed: ResumedState | None
    placement: Placement
    warnings: tuple[str, ...]


def load(inputs: RunInputs, data: PreparedData, loader: Loader, context: RunContext) -> LoadedModel:
    """Loads the base model, attaches the adapter, and reads the checkpoint that the run continues from.

    Raises:
        JobError: `MODEL_INVALID`, `OUT_OF_MEMORY`, `ENGINE_UNAVAILABLE` or `CHECKPOINT_INVALID`.
    """
    spec, ranks = inputs.spec, context.ranks
    context.report(PreparationAdvanced(activity=Activity.LOADING))
    precision, warnings = choose_precision(spec)
    with context.watch.part("load"):
        # A model that will be sharded is loaded to the CPU first: it need not fit into the memory of one GPU.
        loading_precision = (
            replace(precision, device=torch.device("cpu")) if ranks.sharded else precision
        )
        model = loader.load(inputs.model_dir, spec, loading_precision)
        # Before the base is sharded and before the fused pass copies the adapter. A preloaded model is fresh.
        if data.start_adapter is not None:
            load_start_adapter(model, data.start_adapter)
        shard_base_model(model, precision, ranks)
        _check_vocabulary(model, data.dataset)
        # Before the first step, and before a checkpoint is restored: the result is a difference from this adapter.
        initial_adapter = None
        if spec.lora.changes_base:
            initial_adapter = inputs.output_dir / ".scratch" / "start"
            save_initial_adapter(model, initial_adapter)
        # The fused pass reads weights and calls no module: not where an engine has replaced modules, where FSDP
        # gathers layers in their hooks, or where hooks take the gradients of single rows.
        may_fuse = loader.allows_fused and not ranks.sharded and not spec.privacy.differential
        loss = CausalLoss(
            model,
            precision,
            pad_id=data.tokenizer.pad_id,
            longest=data.longest,
            checkpointing=spec.train.gradient_checkpointing,
            neftune_alpha=spec.train.neftune_noise_alpha,
            fused=may_fuse,
            compilation=Compilation.from_section(spec.train, precision.device),
        )
    context.report(
        _output_size(model, companion_bytes(inputs.model_dir), merged=spec.output.merged_16bit)
    )
    resumed = (
        read_state(inputs.resume_dir, trained_parameters(model)) if inputs.resume_dir else None
    )
    placement = read_placement(model, spec.lora)
    warnings = (
        *warnings,
        *placement.warnings(),
        *(data.start_adapter.warnings() if data.start_adapter else ()),
    )
    return LoadedModel(
        model, precision, loss, loader.name, initial_adapter, resumed, placement, warnings
    )


def _output_size(model: Any, companions: int, *, merged: bool) -> OutputSizeKnown:
    """Returns what the sizes of checkpoints and result follow from; `companions` bytes lie beside the weights."""
    trained, total = model.get_nb_trainable_parameters()  # PEFT counts a packed 4-bit weight as two
    embedding = model.get_input_embeddings().weight
    # 16 bits a parameter; a head that shares the embedding's matrix may get one of its own.
    merged_bytes = 2 * (total - trained + embedding.numel()) + companions if merged else 0
    return OutputSizeKnown(
        trained_parameters=min(trained, MAX_TRAINED_PARAMETERS),
        copied_bytes=min(merged_bytes + companions, MAX_COPIED_BYTES),
    )


def _check_vocabulary(model: Any, dataset: Dataset) -> None:
    """Refuses a tokenizer with ids that the embedding does not have.

    Raises:
        JobError: `MODEL_INVALID`. On a GPU the look-up would fail as an assertion of the device, without a reason.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    largest = max(max(example.ids) for example in (*dataset.train, *dataset.evaluation))
    if largest >= vocabulary:
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "tokenizer and base model do not fit",
            expected=f"token ids below {vocabulary}",
            found=largest,
        )


def trained_parameters(model: Any) -> dict[str, Any]:
    """Returns the parameters that require gradients by name, in the model's order."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
