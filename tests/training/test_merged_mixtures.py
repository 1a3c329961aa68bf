"""The merged model of mixtures of experts: the sum is right in float32, and the files are it, rounded.

Rounding a router's weights may send a token to another expert, which changes logits by more than any rounding. So
real routing is compared in float32, the files tensor by tensor, and logits of the files where each token goes to
all experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers
from torch import Tensor

from trainer.spec import LoraSection, ModelSection
from trainer.training.adapter import attach_adapter, save_adapter
from trainer.training.engines.base_model_loading import load_base_model
from trainer.training.merged import save_merged

IDS: Final = torch.arange(5, 25).unsqueeze(0)
EXPERTS: Final = 4
UNIT_ROUNDOFF: Final = 2.0**-8
"""Of bfloat16: the rounding of x is off by at most this times |x|."""

_SMALL: Final[dict[str, Any]] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
_SIZES: Final[dict[str, dict[str, Any]]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen2_moe": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 24},
    "olmoe": {"num_experts": EXPERTS},
    "gpt_oss": {"num_local_experts": EXPERTS, "head_dim": 16},
    "granitemoe": {"num_local_experts": EXPERTS},
    "phimoe": {"num_local_experts": EXPERTS},
    "glm4_moe": {
        "n_routed_experts": EXPERTS,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
    }
    | {"first_k_dense_replace": 1, "head_dim": 16},
    "llama4_text": {"num_local_experts": EXPERTS, "intermediate_size_mlp": 24, "head_dim": 16},
}


def make_model(model_type: str, target: Path, experts_per_token: int) -> Path:
    config = transformers.AutoConfig.for_model(
        model_type, **_SMALL, **_SIZES[model_type], num_experts_per_tok=experts_per_token
    )
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(target)
    return target


def load(model_dir: Path) -> Any:
    return load_base_model(model_dir, dtype=torch.float32, attn_implementation="eager").eval()


def trained(model_dir: Path, adapter: Path, targets: Any) -> Any:
    """A model with an adapter that does something; the adapter is saved."""
    model = attach_adapter(load(model_dir), LoraSection(lora_r=4, lora_target_modules=targets))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    pins = {"config.json": "0" * 64, "model.safetensors": "0" * 64}
    save_adapter(model, ModelSection(model_name_or_path="./m", model_file_sha256=pins), adapter)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [*((name, "all-linear") for name in _SIZES), ("mixtral", ("q_proj", "v_proj"))],
)
def test_merged_mixture_is_the_trained_one_rounded(
    model_type: str, targets: Any, tmp_path: Path
) -> None:
    base = make_model(
        model_type, tmp_path / "base", experts_per_token=1 if model_type == "llama4_text" else 2
    )
    before = load(base)
    plain, published = logits(before), before.state_dict()
    model = trained(base, tmp_path / "adapter", targets)
    expected = logits(model)
    save_merged(base, tmp_path / "adapter", tmp_path / "merged")

    exact = model.merge_and_unload(safe_merge=True)
    assert (expected - plain).abs().max() > 0.5
    torch.testing.assert_close(logits(exact), expected, atol=1e-4, rtol=0)
    files = load(tmp_path / "merged").state_dict()
    assert files.keys() == exact.state_dict().keys()
    for name, value in exact.state_dict().items():
        # W, the change D and their sum are rounded: |W + D - files| <= u (|W| + |D| + |W + D|), up to u squared.
        scale = published[name].abs() + (value - published[name]).abs() + value.abs()
        assert ((files[name] - value).abs() <= 1.01 * UNIT_ROUNDOFF * scale + 1e-7).all(), name


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"])
def test_logits_of_the_merged_mixture_differ_by_rounding_alone(
    model_type: str, tmp_path: Path
) -> None:
    base = make_model(model_type, tmp_path / "base", experts_per_token=EXPERTS)
    plain = logits(load(base))
    expected = logits(trained(base, tmp_path / "adapter", "all-linear"))
    save_merged(base, tmp_path / "adapter", tmp_path / "merged")
    found = logits(load(tmp_path / "merged"))
    assert (found - expected).abs().max() < 0.05 * (expected - plain).abs().max()
