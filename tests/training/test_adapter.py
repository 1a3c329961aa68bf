"""Adapters that start from the base model's own weights end as plain ones for the unchanged base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trainer.spec import LoraSection, ModelSection
from trainer.training.adapter import attach_adapter, save_adapter, save_initial_adapter

IDS = torch.tensor([[5, 17, 99, 23, 4, 60]])
SECTION = ModelSection(
    model_name_or_path="./tiny",
    model_file_sha256={"config.json": "0" * 64, "model.safetensors": "0" * 64},
)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.filterwarnings("ignore")
def test_the_saved_adapter_does_on_the_base_what_training_did(
    tiny_model: Path, tmp_path: Path, init: str
) -> None:
    torch.manual_seed(2)
    lora = LoraSection(lora_r=4, init_lora_weights=init)
    assert lora.changes_base
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    untouched = base(IDS).logits.detach()
    model: Any = attach_adapter(base, lora).eval()
    torch.testing.assert_close(model(IDS).logits.detach(), untouched, rtol=1e-3, atol=1e-3)
    save_initial_adapter(model, tmp_path / "start")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    trained = model(IDS).logits.detach()
    save_adapter(model, SECTION, tmp_path / "adapter", initial=tmp_path / "start")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    fresh = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter"
    )
    torch.testing.assert_close(fresh.eval()(IDS).logits.detach(), trained, rtol=1e-3, atol=1e-3)
    assert float((trained - untouched).abs().max()) > 0.01


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_these_leave_the_base_alone(tiny_model: Path, init: Any) -> None:
    torch.manual_seed(2)
    lora = LoraSection(lora_r=4, init_lora_weights=init)
    assert not lora.changes_base
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = base(IDS).logits.detach()
    torch.testing.assert_close(attach_adapter(base, lora).eval()(IDS).logits.detach(), before)
