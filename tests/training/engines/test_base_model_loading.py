"""A base model whose files do not have exactly the tensors of its architecture is refused, not completed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import ErrorCode, JobError
from trainer.training.engines.base_model_loading import load_base_model

Tensors = dict[str, Tensor]


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: one for name, one in tensors.items() if not any(part in name for part in parts)
    }


def quantized(tensors: Tensors) -> Tensors:
    return {name.replace("_proj.weight", "_proj.qweight"): one for name, one in tensors.items()}


CASES: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, object], str]] = {
    "missing": (without("layers.1.mlp"), {}, "missing: 3: model.layers.1.mlp.down_proj.weight"),
    "quantized": (quantized, {}, "missing: 14: model.layers.0.mlp.down_proj.weight"),
    "unknown": (
        lambda tensors: tensors | {"model.more": torch.zeros(2)},
        {},
        "unknown: 1: model.more",
    ),
    "shapes": (
        lambda tensors: tensors,
        {"intermediate_size": 64},
        "of other shapes: 6: model.layers.0.mlp",
    ),
    "head": (without("lm_head"), {"tie_word_embeddings": False}, "missing: 1: lm_head.weight"),
}


@pytest.mark.parametrize("case", CASES)
def test_other_tensors_than_the_architecture_has_are_refused(
    case: str, tiny_model: Path, tmp_path: Path
) -> None:
    edit, config, part = CASES[case]
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    save_file(
        edit(load_file(model / "model.safetensors")), model / "model.safetensors", {"format": "pt"}
    )
    (model / "config.json").write_text(
        json.dumps(json.loads((model / "config.json").read_bytes()) | config)
    )
    with pytest.raises(JobError) as refused:
        load_base_model(model)
    assert refused.value.code is ErrorCode.MODEL_INVALID
    assert part in str(refused.value)


def test_what_the_architecture_declares_dispensable_is_no_error(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert load_base_model(model).lm_head.weight.shape == (600, 48)
