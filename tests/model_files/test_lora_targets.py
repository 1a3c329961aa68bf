"""Names in section `lora`: each selects modules as in PEFT, and one that selects none is refused."""

from __future__ import annotations

import pytest

from tests.model_files.tiny_files import llama_shapes
from trainer.errors import JobError
from trainer.model_files.lora_targets import (
    check_lora_names,
    count_targets,
    language_modules,
    leaf_counts,
    placement_warnings,
)
from trainer.model_files.tensor_listing import TensorListing
from trainer.spec import LoraSection

LISTING = TensorListing({name: tuple(shape) for name, shape in llama_shapes().items()})
MODULES = language_modules(LISTING)


def section(**fields: object) -> LoraSection:
    return LoraSection.model_validate_json(LoraSection(**fields).model_dump_json())  # type: ignore[arg-type]


def test_each_name_is_counted() -> None:
    lora = section(
        lora_target_modules=("q_proj", "mlp.up_proj", "model.layers.1.self_attn.k_proj", "lm_head")
    )
    expected = {"q_proj": 2, "mlp.up_proj": 2, "model.layers.1.self_attn.k_proj": 1, "lm_head": 1}
    assert check_lora_names(lora, MODULES) == expected
    assert check_lora_names(section(), MODULES) == {}
    assert check_lora_names(
        section(exclude_modules=("down_proj",), modules_to_save=("embed_tokens",)), MODULES
    ) == {
        "down_proj": 2,
        "embed_tokens": 1,
    }


@pytest.mark.parametrize("key", ["lora_target_modules", "exclude_modules", "modules_to_save"])
def test_names_that_select_nothing_are_refused_with_their_key(key: str) -> None:
    with pytest.raises(JobError) as refused:
        check_lora_names(section(**{key: ("up_proj", "qkv_prj", "proj", "layers.0")}), MODULES)
    assert f"3: lora.{key} layers.0, lora.{key} proj, lora.{key} qkv_prj" in str(refused.value)
    assert "q_proj (2)" in str(refused.value)


def test_no_module_is_trained_in_two_ways() -> None:
    with pytest.raises(JobError, match=r"1: model\.embed_tokens"):
        check_lora_names(
            section(lora_target_modules=("embed_tokens",), modules_to_save=("embed_tokens",)),
            MODULES,
        )


def test_towers_are_no_targets_and_experts_count_once_a_layer() -> None:
    listing = TensorListing(
        {"vision_tower.layers.0.q_proj.weight": (2, 2)}
        | {f"model.layers.0.mlp.experts.{number}.w1.weight": (2, 2) for number in range(4)}
    )
    assert language_modules(listing) == {"model.layers.0.mlp.experts.w1", "lm_head"}
    assert len(placement_warnings(listing, section())) == 2
    assert placement_warnings(LISTING, section()) == ()
    assert leaf_counts(["a.b.q", "c.q", "a.gate.weight"]) == {"gate.weight": 1, "q": 2}


def test_a_head_without_a_tensor_of_its_own_is_a_module_too() -> None:
    tied = TensorListing(
        {name: shape for name, shape in LISTING.shapes.items() if "lm_head" not in name}
    )
    assert count_targets(section(lora_target_modules=("lm_head", "q_proj")), tied) == {
        "lm_head": 1,
        "q_proj": 2,
    }


def test_names_that_select_nothing_of_an_unknown_architecture_are_warned_of() -> None:
    """Its modules may have other names than its tensors, so that only the job can refuse."""
    lora = section(lora_target_modules=("q_proj", "qkv_prj"), exclude_modules=("wi",))
    (warning,) = placement_warnings(LISTING, lora)
    assert "2: lora.exclude_modules wi, lora.lora_target_modules qkv_prj" in warning
    assert "q_proj (2)" in warning
