"""The table of architectures agrees with transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.model_files.known_layers import LAYER_MODULES
from trainer.model_files.lora_targets import language_modules
from trainer.model_files.tensor_listing import TensorListing
from trainer.training.placement import language_modules as modules_of_the_worker

SMALL = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "pad_token_id": 0,
    "layer_types": ["full_attention"] * 2,
}


@pytest.mark.parametrize("model_type", LAYER_MODULES)
def test_every_layer_has_these_modules(model_type: str) -> None:
    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, **SMALL)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert language_modules(TensorListing(shapes)) == modules_of_the_worker(model).keys()
    names = {name for name in model.state_dict() if name.endswith(".weight")} - {"lm_head.weight"}
    expected = {
        f"model.layers.{number}.{name}.weight"
        for number in (0, 1)
        for name in LAYER_MODULES[model_type]
    }
    assert names == expected | {"model.embed_tokens.weight", "model.norm.weight"}
