"""The LoRA adapter as PEFT has it: attached to a base model, copied, and saved without a trace of the machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import ErrorCode, JobError
from trainer.model_files.adapter_base import ADAPTER_WEIGHTS
from trainer.model_files.safetensors_header import add_metadata
from trainer.model_files.start_adapter import base_metadata
from trainer.spec import LoraSection, ModelSection
from trainer.training.placement import check_placement, choose_modules


def attach_adapter(model: Any, lora: LoraSection) -> Any:
    """Returns a PEFT model: `model` frozen, with fresh LoRA weights drawn from torch's seeded generator.

    Every trained parameter is float32: an update is often smaller than the rounding of a 16-bit weight.

    Raises:
        JobError: `MODEL_INVALID`: the model has no such modules, or PEFT cannot adapt them.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 -- after the choice of the engine

    choice = choose_modules(model, lora)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=choice.targets,
        exclude_modules=choice.excluded,
        modules_to_save=choice.in_full,
        ensure_weight_tying=choice.tied,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=lora.init_lora_weights,  # type: ignore[arg-type]  # a pattern, not a list
    )
    try:
        with without_misleading_warnings():
            adapted = get_peft_model(model, config)
    except (
        ValueError,
        AttributeError,
        TypeError,
    ) as error:  # PEFT has no type for modules that it cannot adapt
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the adapter does not fit the base model",
            expected="section lora: modules and options that PEFT has for this model",
            found=str(error)[:500],
            hint="weights of experts take neither lora_dropout nor use_dora, and no other init_lora_weights",
        ) from error
    check_placement(adapted, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


@contextmanager
def without_misleading_warnings() -> Iterator[None]:
    """Silences warnings of PEFT that do not apply here."""
    with warnings.catch_warnings():
        # About an adapter on one of two tied matrices: `trainer.training.merged` unties them.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        # PEFT's own patterns for the weights of experts, which it looks for among modules.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
        yield


def copy_parameters(parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns a copy of each parameter, on its device and without a graph."""
    return tuple(parameter.detach().clone() for parameter in parameters)


def restore_parameters(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies each value into the parameter at its position, without recording it for autograd."""
    # In place: the optimizer and the model hold references to these tensors.
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def save_initial_adapter(model: Any, target: Path) -> None:
    """Saves a fresh adapter whose initialisation subtracted something from the base weights (such as PiSSA).

    `save_adapter` needs it. With W the published weights, B0 A0 the fresh product and B A the trained one (each
    with its scale), the model computes W - B0 A0 + B A. The result must work on W alone, so PEFT saves the
    difference B A - B0 A0 as one adapter: the concatenation [B, -B0] [A; A0], of twice the rank.
    """
    config = model.peft_config["default"]
    # PEFT reads the saved config when it converts; True says that these weights need no further initialisation.
    initialisation, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(str(target), safe_serialization=True, save_embedding_layers=False)
    config.init_lora_weights = initialisation


def save_adapter(
    model: Any, section: ModelSection, target: Path, *, initial: Path | None = None
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`; `trainer.training.stages.write` adds a card.

    The metadata of the second name the base model, so that a later job can start from this adapter.

    Args:
        model: PEFT model.
        section: names the base model; no directory is mentioned, neither the operator's nor the worker's.
        target: new directory.
        initial: directory that `save_initial_adapter` wrote; None where the base weights were not changed.
    """
    name = None if section.is_local else section.model_name_or_path
    for config in model.peft_config.values():
        config.base_model_name_or_path = name
        config.revision = section.model_revision
        for field in ("target_modules", "target_parameters", "exclude_modules"):
            if isinstance(names := getattr(config, field), set):
                setattr(config, field, sorted(names))  # a set has another order in each process
    # PEFT falls back to these where a local model has no name.
    base = model.get_base_model()
    base.name_or_path = base.config._name_or_path = name or ""  # noqa: SLF001
    # save_embedding_layers is not "auto": that fetches the base model's config from the hub, to see whether its
    # vocabulary grew.
    model.save_pretrained(
        str(target),
        safe_serialization=True,
        save_embedding_layers=False,
        path_initial_model_for_weight_conversion=None if initial is None else str(initial),
    )
    add_metadata(target / ADAPTER_WEIGHTS, base_metadata(section))
    # PEFT's template; the run's own model card replaces it.
    (target / "README.md").unlink(missing_ok=True)
