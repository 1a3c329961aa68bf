"""What the engine refuses, and that it leaves the model as the job spec says."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unsloth.measured_step import LLAMA, disturb, make_spec
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training.engines.base import choose_precision


@pytest.fixture
def llama(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models / LLAMA, tmp_path / "model")
    return tmp_path / "model"


def with_keys(case: str, **sections: dict[str, Any]) -> JobSpec:
    document = make_spec(case, "unsloth").model_dump(mode="json", exclude_unset=True)
    for name, leaves in sections.items():
        document.setdefault(name, {}).update(leaves)
    return JobSpec.model_validate_json(json.dumps(document))


def load(loader: Any, model_dir: Path, spec: JobSpec) -> Any:
    return loader.load(model_dir, spec, choose_precision(spec)[0])


def edit_tensors(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(model_dir: Path) -> None:
        tensors = load_file(model_dir / "model.safetensors")
        edit(tensors)
        save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})

    return apply


NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (edit_tensors(lambda tensors: tensors.pop(NORM)), "missing: "),
        (edit_tensors(lambda tensors: tensors.update(extra=torch.zeros(2))), "unknown: extra"),
        (edit_tensors(lambda tensors: tensors.update({NORM: torch.zeros(2)})), "of other shapes: "),
    ],
)
def test_other_tensors_than_the_architecture_has(
    edit: Callable[[Path], None], found: str, llama: Path, unsloth_loader: Any
) -> None:
    edit(llama)
    with pytest.raises(JobError, match="do not have the tensors of its architecture") as caught:
        load(unsloth_loader, llama, with_keys("sft"))
    assert caught.value.code is ErrorCode.MODEL_INVALID
    assert found in str(caught.value.found)


def test_names_that_the_model_lacks_are_named(llama: Path, unsloth_loader: Any) -> None:
    with pytest.raises(JobError, match="no module of a name in section lora") as caught:
        load(unsloth_loader, llama, with_keys("sft", lora={"lora_target_modules": ["q_proj", "c_attn"]}))
    assert caught.value.code is ErrorCode.MODEL_INVALID


def test_more_tokens_than_the_model_was_made_for_do_not_stretch_its_positions(
    llama: Path, unsloth_loader: Any
) -> None:
    model = load(unsloth_loader, llama, with_keys("sft", data={"max_length": 4096}))
    assert model.config.max_position_embeddings == 512
    assert model.config.rope_parameters["rope_type"] == "default"


def test_an_adapter_of_the_spec_and_nothing_else_is_trained(llama: Path, unsloth_loader: Any) -> None:
    """The same fresh adapter as with transformers: by the same seed, of PEFT's own initialisation."""
    from trainer.training.engines.transformers_engine import TransformersLoader

    spec = with_keys("sft")
    trained = []
    for loader in (unsloth_loader, TransformersLoader()):
        torch.manual_seed(5)
        model = load(loader, llama, spec)
        trained.append({name: p for name, p in model.named_parameters() if p.requires_grad})
    assert trained[0].keys() == trained[1].keys()
    for name, parameter in trained[0].items():
        assert parameter.dtype is torch.float32
        torch.testing.assert_close(parameter, trained[1][name], rtol=0, atol=0)


def test_an_answer_is_what_the_forward_pass_finds_most_probable(llama: Path, unsloth_loader: Any) -> None:
    """Token by token with cached keys and padding on the left: unsloth has other code for it than for training."""
    from trainer.training.report.samples import pad_left

    spec = with_keys("sft")
    model, precision = load(unsloth_loader, llama, spec), choose_precision(spec)[0]
    disturb(model)
    model.eval()
    prompts = [[20, 21, 22, 23, 24], [30, 31]]
    ids, mask = pad_left(prompts, 0, torch.device("cpu"))
    with torch.no_grad(), precision.context():
        answers = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=0
        )
        for prompt, answer in zip(prompts, answers[:, ids.shape[1] :].tolist(), strict=True):
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
            for position, token in enumerate(answer, start=len(prompt) - 1):
                best = logits[position].max() - logits[position, token]
                assert best < 0.05 * logits[position].std(), "another answer by more than rounding"


@pytest.mark.parametrize("wanted", [True, False])
def test_sampling_leaves_gradient_checkpointing_as_it_was(wanted: bool, llama: Path, unsloth_loader: Any) -> None:
    from array import array

    from trainer.data.examples.example import Example
    from trainer.training.report.samples import Sampler
    from trainer.training.tokenizer import load_tokens

    spec = with_keys("sft", train={"gradient_checkpointing": wanted})
    model = load(unsloth_loader, llama, spec)
    example = Example(array("i", [20, 21, 22, 23]), bytes([0, 0, 1, 1]), stops=True)
    sampler = Sampler(model, load_tokens(llama), choose_precision(spec)[0], [example], count=1, max_new_tokens=2)
    sampler.sample_before_training()
    found = [vars(module).get("gradient_checkpointing", wanted) for module in model.modules()]
    assert set(found) == {wanted}


def test_loading_asks_nobody_and_starts_nothing(
    llama: Path, unsloth_loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statistics probe an address and download counters; it downloads in a process of its own."""
    asked: list[object] = []

    def note(*arguments: object, **_named: object) -> None:
        asked.append(arguments)
        raise OSError

    for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect"), (subprocess, "Popen")):
        monkeypatch.setattr(owner, name, note)
    load(unsloth_loader, llama, with_keys("sft"))
    assert asked == []


def test_another_release_is_refused(unsloth_loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.training.engines import unsloth_engine

    monkeypatch.setattr(unsloth_engine, "version", lambda _name: "2026.11.1")
    with pytest.raises(JobError, match="this release") as caught:
        unsloth_engine.UnslothLoader()
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert "unsloth 2026.10.9" in str(caught.value.expected)


def test_a_model_that_is_not_as_the_spec_says_is_refused(
    llama: Path, unsloth_loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a release did not replace a pass, or chose other types or another adapter."""
    from transformers.models.llama import modeling_llama

    from trainer.training.engines import unsloth_engine

    spec = with_keys("sft")
    model, precision = load(unsloth_loader, llama, spec), choose_precision(spec)[0]
    check = unsloth_engine._require_as_specified
    layer = model.get_base_model().model.layers[0]

    def refused(reason: str, spec: JobSpec = spec) -> None:
        with pytest.raises(JobError, match="another model than the job spec asks for") as caught:
            check(model, spec, precision)
        assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
        assert reason in str(caught.value.found)

    check(model, spec, precision)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaDecoderLayer, "forward", torch.nn.Module.forward)
        refused("layers without unsloth's forward pass: layers.0")
    refused("gradient_checkpointing is not True", with_keys("sft", train={"gradient_checkpointing": True}))
    layer.input_layernorm.weight.requires_grad_(True)
    refused("trained weights that are not float32 and LoRA's")
    layer.input_layernorm.weight.requires_grad_(False)
    layer.input_layernorm.float()
    refused("base weights that are not torch.bfloat16: torch.float32")
