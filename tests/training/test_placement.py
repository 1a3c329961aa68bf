"""Which modules an adapter lies on: those that were asked for, in the language model, and none in silence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Llama4TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
)

from trainer.errors import ErrorCode, JobError
from trainer.spec import LoraSection
from trainer.training.adapter import attach_adapter
from trainer.training.placement import Placement, read_placement

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def multimodal() -> Any:
    """A Gemma 3 with a vision tower whose modules are called as those of the language model."""
    vision = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    )
    text = Gemma3TextConfig(**SMALL)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4
        )
    )


@pytest.fixture(scope="module")
def experts() -> Any:
    """A Qwen 3 mixture of experts whose first layer has a feed-forward network of its own."""
    config = Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=8, mlp_only_layers=[0])
    return Qwen3MoeForCausalLM(config)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def place(model: Any, **fields: Any) -> tuple[Any, Placement]:
    lora = LoraSection(lora_r=2, **fields)
    adapted = attach_adapter(copy.deepcopy(model), lora)
    return adapted, read_placement(adapted, lora)


def refusal(model: Any, **fields: Any) -> str:
    with pytest.raises(JobError) as refused:
        place(model, **fields)
    assert refused.value.code is ErrorCode.MODEL_INVALID
    return str(refused.value)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj", "o_proj")])
def test_an_adapter_leaves_a_vision_tower_out(multimodal: Any, targets: Any) -> None:
    model, placement = place(multimodal, lora_target_modules=targets)
    assert placement.adapted
    assert all("language_model" in name for name in placement.adapted)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not [name for name in trained if "vision" in name or "projector" in name]


def test_names_of_the_vision_tower_alone_are_refused(multimodal: Any) -> None:
    assert "1: lora.lora_target_modules fc1" in refusal(
        multimodal, lora_target_modules=("q_proj", "fc1")
    )


@pytest.mark.parametrize("key", ["lora_target_modules", "exclude_modules", "modules_to_save"])
def test_a_misspelt_name_is_refused_beside_right_ones(llama: Any, key: str) -> None:
    assert f"1: lora.{key} qkv_prj" in refusal(llama, **{key: ("up_proj", "qkv_prj")})


def test_excluded_modules_get_no_adapter(llama: Any) -> None:
    _, placement = place(llama, exclude_modules=("down_proj", "layers.0.self_attn.q_proj"))
    assert placement.describe()["LoRA on q_proj"] == "1 modules"
    assert "LoRA on down_proj" not in placement.describe()
    assert placement.warnings() == ()


def test_all_linear_reaches_experts_and_says_what_it_does_not_reach(experts: Any) -> None:
    _, placement = place(experts)
    described = placement.describe()
    assert described["LoRA on gate_up_proj"] == described["LoRA on down_proj"] == "1 modules"
    assert described["no LoRA on up_proj"] == "1 modules"
    (warning,) = placement.warnings()
    assert "does not reach down_proj (1), gate_proj (1), up_proj (1)" in warning


def test_what_experts_cannot_have_is_refused_with_the_reason(experts: Any) -> None:
    assert "lora_dropout" in refusal(experts, lora_dropout=0.1)
    assert "got 1: down_proj" in refusal(experts, exclude_modules=("down_proj",))


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_tied_matrices_are_trained_in_full_as_one_and_in_float32(llama: Any, name: str) -> None:
    model, placement = place(copy.deepcopy(llama).to(torch.bfloat16), modules_to_save=(name,))
    assert placement.in_full == {"lm_head", "model.embed_tokens"}
    assert placement.describe()["lm_head"] == "trained in full"
    assert placement.warnings() == ()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight
    assert all(p.dtype is torch.float32 for p in model.parameters() if p.requires_grad)


def test_a_tied_matrix_is_not_trained_in_two_ways(llama: Any) -> None:
    message = refusal(
        llama, modules_to_save=("embed_tokens",), lora_target_modules=("q_proj", "lm_head")
    )
    assert "one matrix" in message


def test_a_router_that_returns_its_choice_has_no_adapter_and_is_said_to_have_none() -> None:
    sizes = SMALL | {"num_local_experts": 2, "pad_token_id": 0, "intermediate_size_mlp": 8}
    llama4 = AutoModelForCausalLM.from_config(Llama4TextConfig(**sizes))  # type: ignore[no-untyped-call]
    _, placement = place(llama4)
    assert placement.describe()["no LoRA on router"] == "2 modules"
    assert "router (2)" in placement.warnings()[0]
    assert "1: lora.lora_target_modules router" in refusal(
        llama4, lora_target_modules=("q_proj", "router")
    )
