"""Parameters and memory from config.json: against a model that is built, and what backward really keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.data.examples.model_config import read_config
from trainer.model_files.architecture import Architecture, architecture_of
from trainer.spec import Dtype, JobSpec, LoraSection
from trainer.validation.memory import GIB, adapter_parameters, estimate_memory

SPEC: dict[str, Any] = {
    "version": 1,
    "model": {
        "model_name_or_path": "./m",
        "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
    },
    "lora": {"lora_r": 8, "lora_alpha": 8},
}
CONFIG: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def spec(**sections: dict[str, Any]) -> JobSpec:
    document = {name: {**SPEC.get(name, {}), **leaves} for name, leaves in sections.items()}
    return JobSpec.model_validate_json(json.dumps({**SPEC, **document}))


def widths(**changes: Any) -> Architecture:
    found = architecture_of({**CONFIG, **changes})
    assert found is not None
    return found


def test_parameters_of_a_published_model() -> None:
    model = widths()
    # Llama 3.1 8B, as its makers say.
    assert model.linear_parameters + model.other_parameters == 8_030_261_248
    assert adapter_parameters(model, spec(lora={"lora_r": 16})) == 41_943_040


def test_parameters_are_those_of_the_model_that_is_built(tiny_model: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = architecture_of(read_config(tiny_model))
    assert model is not None
    built: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert model.linear_parameters + model.other_parameters == sum(
        p.numel() for p in built.parameters()
    )
    for use_dora in (False, True):
        lora = LoraConfig(
            r=8, target_modules="all-linear", use_dora=use_dora, task_type="CAUSAL_LM"
        )
        adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert adapter_parameters(model, spec(lora={"use_dora": use_dora})) == trainable


def test_targets_by_name() -> None:
    model = widths()
    only = spec(lora={"lora_target_modules": ["q_proj", "model.layers.0.self_attn.v_proj"]})
    assert adapter_parameters(model, only) == 32 * 8 * ((4096 + 4096) + (4096 + 1024))
    head = spec(lora={"lora_target_modules": ["q_proj", "lm_head"], "exclude_modules": ["q_proj"]})
    assert adapter_parameters(model, head) == 8 * (4096 + 128256)
    in_full = spec(
        lora={"lora_target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    )
    assert adapter_parameters(model, in_full) == 32 * 8 * (4096 + 4096) + 2 * 4096 * 128256


def test_activations_are_about_what_backward_keeps() -> None:
    """Saved tensors of a Llama in bfloat16 with an adapter on every linear layer, each storage counted once."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    base: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    base.to(torch.bfloat16)
    model: Any = get_peft_model(
        base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 512
    ids = torch.randint(0, 64, (1, tokens))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model.get_base_model().base_model(
            input_ids=ids, use_cache=False
        ).last_hidden_state.float().sum()
    found = architecture_of(config.to_dict())
    assert found is not None
    estimated = estimate_memory(found, spec(), tokens=tokens, trained=0).activations
    assert 0.9 < estimated / sum(kept.values()) < 1.1


def test_each_part_of_the_estimate() -> None:
    model = widths()
    plain = estimate_memory(model, spec(), tokens=4096, trained=1000)
    assert 14.9 < plain.weights / GIB < 15.1
    assert plain.logits == 12 * 1000 * 128256
    four = estimate_memory(model, spec(model={"load_in_4bit": True}), tokens=4096, trained=1000)
    eight = estimate_memory(model, spec(model={"load_in_8bit": True}), tokens=4096, trained=1000)
    whole = estimate_memory(model, spec(model={"dtype": Dtype.FLOAT32}), tokens=4096, trained=1000)
    assert four.weights < eight.weights < plain.weights < whole.weights
    assert 5.2 < four.weights / GIB < 5.6
    saving = estimate_memory(
        model, spec(train={"gradient_checkpointing": True}), tokens=4096, trained=1000
    )
    assert saving.activations < plain.activations / 5
    parts = plain.weights + plain.adapter + plain.activations + plain.logits + plain.reserve
    assert plain.total == parts


@pytest.mark.parametrize(
    "changes", [{"num_experts": 8}, {"hidden_size": None}, {"num_hidden_layers": "x"}]
)
def test_what_is_not_known_is_not_guessed(changes: dict[str, Any]) -> None:
    assert architecture_of({**CONFIG, **changes}) is None


def test_widths_of_a_model_with_pictures() -> None:
    assert architecture_of({"text_config": CONFIG, "tie_word_embeddings": True}) == widths(
        tie_word_embeddings=True
    )


def test_the_default_adapter_is_on_every_linear_layer() -> None:
    assert LoraSection().lora_target_modules == "all-linear"
