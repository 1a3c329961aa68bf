"""Base and adapter in one directory: the same answers as PEFT gives, and nothing of this machine in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.encoding import file_sha256
from trainer.model_files.companion_files import copied_digests, copy_companions
from trainer.receipt.result_files import require_result_file
from trainer.spec import JobSpec
from trainer.training.adapter import save_adapter
from trainer.training.engines.base import Precision
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.merged import save_merged

IDS = torch.arange(5, 25).unsqueeze(0)
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}<|im_end|>\r\n{% endfor %}é"

MakeSpec = Callable[..., JobSpec]


def train(
    model_dir: Path, target: Path, spec: JobSpec, chat_template: str | None = None
) -> torch.Tensor:
    """Writes an adapter that does something, and the merged model; returns the logits of the trained model."""
    torch.manual_seed(1)
    model = (
        TransformersLoader()
        .load(model_dir, spec, Precision(torch.device("cpu"), torch.float32, autocast=False))
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        logits: torch.Tensor = model(IDS).logits
    save_adapter(model, spec.model, target / "adapter")
    copy_companions(model_dir, target / "adapter", chat_template)
    save_merged(model_dir, target / "adapter", target / "merged", chat_template)
    return logits


SECTIONS: dict[str, dict[str, Any]] = {
    "linear modules": {},
    "a tied head": {"lora_target_modules": ["lm_head", "q_proj"]},
    "a tied embedding": {"lora_target_modules": ["embed_tokens", "q_proj"]},
    "both": {"lora_target_modules": ["embed_tokens", "lm_head"]},
    "an embedding in full": {"modules_to_save": ["embed_tokens"]},
    "a head in full": {"modules_to_save": ["lm_head"]},
    "excluded modules": {"exclude_modules": ["down_proj"]},
}


# Of PEFT, when it loads the adapter.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("case", SECTIONS)
def test_adapter_and_merged_model_are_what_was_trained(
    case: str, tiny_model: Path, tmp_path: Path, make_spec: MakeSpec
) -> None:
    trained = train(tiny_model, tmp_path, make_spec(lora=SECTIONS[case]))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        plain = base(IDS).logits
        found = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(IDS).logits
        torch.testing.assert_close(found, trained)
        effect = (trained - plain).abs().max()
        # Each weight is rounded to 8 significant bits.
        assert (merged(IDS).logits - trained).abs().max() < 0.05 * effect
    tied = json.loads((tmp_path / "merged" / "config.json").read_bytes())["tie_word_embeddings"]
    assert tied == ("tied" not in case and case != "both")


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["own", "other"])
def test_both_have_the_tokenizer_and_the_template_of_the_training(
    template: str | None, tiny_model: Path, tmp_path: Path, make_spec: MakeSpec
) -> None:
    train(tiny_model, tmp_path, make_spec(), template)
    pinned = {path.name: file_sha256(path) for path in tiny_model.iterdir()}
    own = AutoTokenizer.from_pretrained(tiny_model).chat_template
    for name in ("adapter", "merged"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer.chat_template == (
            own if template is None else template.replace("\r\n", "\n")
        )
        assert (tmp_path / name / "generation_config.json").is_file()
        for path in (tmp_path / name).iterdir():
            assert str(tiny_model).encode() not in path.read_bytes(), path.name
            with path.open("rb") as file:
                require_result_file(
                    f"{name}/{path.name}",
                    file,
                    path.stat().st_size,
                    copied=copied_digests(pinned, template, None),
                )


def test_a_template_file_of_the_base_model_is_the_only_template() -> None:
    pinned = {
        "other.jinja": "1" * 64,
        "chat_template.jinja": "2" * 64,
        "additional_chat_templates/tool_use.jinja": "3",
    }
    assert copied_digests(pinned, None, "other.jinja") == {
        "other.jinja": "1" * 64,
        "chat_template.jinja": "1" * 64,
    }
    assert copied_digests(pinned, None, None) == pinned
