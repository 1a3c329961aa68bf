"""Saving the adapter in PEFT's layout, without a word about the machine it was made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.spec import ModelSection


def save_start(model: Any, target: Path) -> None:
    """Keep a fresh adapter that took something out of the base weights; `save_adapter` needs it to undo that.

    PEFT takes the difference of both adapters, at twice the rank, for the base model as it was.
    """
    config = model.peft_config["default"]
    init, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(str(target), safe_serialization=True, save_embedding_layers=False)
    config.init_lora_weights = init


def save_adapter(model: Any, section: ModelSection, target: Path, *, start: Path | None = None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; `README.md` is the model card's place.

    Args:
        model: PEFT model.
        section: names the base model as the job spec does; the directory it was loaded from is not mentioned.
        target: new directory.
        start: what `save_start` wrote; None where the base weights were left alone.
    """
    name, revision = section.model_name_or_path, section.model_revision
    for config in model.peft_config.values():
        config.base_model_name_or_path = name
        config.revision = revision
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(config.target_modules)  # a set has another order in each process
    model.get_base_model().config._name_or_path = name  # noqa: SLF001 -- PEFT reads it for its README
    # Not "auto": that looks for the base model's config on the hub to see whether its vocabulary grew.
    model.save_pretrained(
        str(target),
        safe_serialization=True,
        save_embedding_layers=False,
        path_initial_model_for_weight_conversion=None if start is None else str(start),
    )
    (target / "README.md").unlink(missing_ok=True)  # PEFT's own knows nothing of this run
