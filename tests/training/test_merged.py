"""Base and adapter in one directory: the same answers as PEFT gives, and nothing of this machine in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.encoding import file_sha256
from trainer.receipt.result_files import require_result_file
from trainer.spec import JobSpec
from trainer.training.adapter import save_adapter
from trainer.training.engines.base import Precision
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.merged import save_merged


@pytest.fixture
def merged(tiny_model: Path, tmp_path: Path, make_spec: Callable[..., JobSpec]) -> Path:
    """A merged model whose adapter does something."""
    torch.manual_seed(1)
    spec = make_spec()
    model = TransformersLoader().load(
        tiny_model, spec, Precision(torch.device("cpu"), torch.float32, autocast=False)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, spec.model, tmp_path / "adapter")
    save_merged(tiny_model, tmp_path / "adapter", tmp_path / "merged")
    return tmp_path


def test_a_merged_model_answers_as_base_and_adapter_do(merged: Path, tiny_model: Path) -> None:
    ids = torch.arange(5, 25).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    with torch.no_grad():
        plain = base(ids).logits
        expected = PeftModel.from_pretrained(base, str(merged / "adapter"))(ids).logits
        found = AutoModelForCausalLM.from_pretrained(merged / "merged", dtype=torch.bfloat16)(ids).logits
    scale = (expected - plain).abs().max()
    assert (found - expected).abs().max() < 0.1 * scale


def test_the_directory_is_whole_and_names_no_path(merged: Path, tiny_model: Path) -> None:
    target = merged / "merged"
    assert (
        AutoTokenizer.from_pretrained(target).chat_template
        == AutoTokenizer.from_pretrained(tiny_model).chat_template
    )
    for path in target.iterdir():
        assert str(tiny_model).encode() not in path.read_bytes(), path.name


def test_every_file_may_be_part_of_a_result(merged: Path, tiny_model: Path) -> None:
    pinned = {path.name: file_sha256(path) for path in tiny_model.iterdir()}
    for path in (*(merged / "merged").iterdir(), *(merged / "adapter").iterdir()):
        with path.open("rb") as file:
            require_result_file(path.relative_to(merged).as_posix(), file, path.stat().st_size, copied=pinned)
