"""Loads the adapter that training starts from into a model, in place of the fresh one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.model_files.adapter_tensors import tensor_error
from trainer.model_files.start_adapter import CheckedAdapter
from trainer.model_files.tensor_listing import shorten


def load_start_adapter(model: Any, adapter: CheckedAdapter) -> None:
    """Copies the tensors of an adapter into the trained parameters of a PEFT model, whatever engine loaded it.

    Args:
        model: PEFT model with a fresh adapter, which section `lora` describes; its base is not sharded yet.
        adapter: the earlier adapter.

    Raises:
        DataError: `DATASET_INVALID`: its tensors are not exactly those of the model's adapter.
    """
    from peft import set_peft_model_state_dict  # noqa: PLC0415 -- after the choice of the engine

    found = load_file(adapter.weights)
    _require_same_tensors(found, _adapter_tensors(model))
    set_peft_model_state_dict(model, found)
    # Read back: what PEFT renamed and did not find again would stay fresh, and of two names of one matrix, such as
    # a tied embedding and head, the second would win.
    loaded = _adapter_tensors(model)
    different = [
        name
        for name in found
        if not torch.equal(loaded[name].cpu(), found[name].to(loaded[name].dtype))
    ]
    if different:
        raise tensor_error(
            "tensors of the start adapter contradict each other",
            "one value for matrices that the base model shares",
            shorten(different),
        )


def _adapter_tensors(model: Any) -> dict[str, Tensor]:
    """Returns the tensors of a model's adapter as its file would have them."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def _require_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shapes = [
        f"{name} {list(found[name].shape)} for {list(expected[name].shape)}"
        for name in found.keys() & expected.keys()
        if found[name].shape != expected[name].shape
    ]
    problems = {
        "missing": expected.keys() - found.keys(),
        "unknown": found.keys() - expected.keys(),
        "of other shapes": shapes,
    }
    if different := "; ".join(
        f"{kind}: {shorten(names)}" for kind, names in problems.items() if names
    ):
        raise tensor_error(
            "the start adapter does not fit the base model",
            "the tensors that section lora makes",
            different,
        )
