"""What the engine makes of a job spec beside the training step: adapter, positions, answers; and whom it asks."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unsloth.measured_step import disturb, make_spec
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training.engines.base import choose_precision


@pytest.fixture
def llama(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models / "llama", tmp_path / "model")
    return tmp_path / "model"


def with_keys(case: str, **sections: dict[str, Any]) -> JobSpec:
    document = make_spec(case, "unsloth").model_dump(mode="json", exclude_unset=True)
    for name, leaves in sections.items():
        document.setdefault(name, {}).update(leaves)
    return JobSpec.model_validate_json(json.dumps(document))


def load(loader: Any, model_dir: Path, spec: JobSpec) -> Any:
    return loader.load(model_dir, spec, choose_precision(spec)[0])


def test_names_that_the_model_lacks_are_named(llama: Path, unsloth_loader: Any) -> None:
    with pytest.raises(JobError, match="no module of a name in section lora") as caught:
        load(
            unsloth_loader,
            llama,
            with_keys("sft", lora={"lora_target_modules": ["q_proj", "c_attn"]}),
        )
    assert caught.value.code is ErrorCode.MODEL_INVALID


def test_more_tokens_than_the_model_was_made_for_do_not_stretch_its_positions(
    llama: Path, unsloth_loader: Any
) -> None:
    model = load(unsloth_loader, llama, with_keys("sft", data={"max_length": 4096}))
    assert model.config.max_position_embeddings == 512
    assert model.config.rope_parameters["rope_type"] == "default"


def test_the_fresh_adapter_is_drawn_by_the_seed(llama: Path, unsloth_loader: Any) -> None:
    """Loading draws numbers too, other ones than transformers does, but sets no seed of its own."""
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        model = load(unsloth_loader, llama, with_keys("sft"))
        drawn.append(
            torch.cat(
                [p.detach().flatten() for name, p in model.named_parameters() if "lora_A" in name]
            )
        )
    assert drawn[0].dtype is torch.float32
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_answer_is_what_the_forward_pass_finds_most_probable(
    llama: Path, unsloth_loader: Any
) -> None:
    """Token by token with cached keys and padding on the left: unsloth has other code for it than for training."""
    from trainer.training.generation import pad_left

    spec = with_keys("sft")
    model, precision = load(unsloth_loader, llama, spec), choose_precision(spec)[0]
    disturb(model)
    model.eval()
    prompts = [[20, 21, 22, 23, 24], [30, 31]]
    ids, mask = pad_left(prompts, 0, torch.device("cpu"))
    with torch.no_grad(), precision.context():
        answers = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=3,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        for prompt, answer in zip(prompts, answers[:, ids.shape[1] :].tolist(), strict=True):
            logits = (
                model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
            )
            for position, token in enumerate(answer, start=len(prompt) - 1):
                best = logits[position].max() - logits[position, token]
                assert best < 0.05 * logits[position].std(), "another answer by more than rounding"


@pytest.mark.parametrize("wanted", [True, False])
def test_sampling_leaves_gradient_checkpointing_as_it_was(
    wanted: bool, llama: Path, unsloth_loader: Any
) -> None:
    from array import array

    from trainer.data.examples.example import Example
    from trainer.training.report.samples import Sampler
    from trainer.training.tokenizer import load_tokens

    spec = with_keys("sft", train={"gradient_checkpointing": wanted})
    model = load(unsloth_loader, llama, spec)
    example = Example(array("i", [20, 21, 22, 23]), bytes([0, 0, 1, 1]), stops=True)
    sampler = Sampler(
        model, load_tokens(llama), choose_precision(spec)[0], [example], count=1, max_new_tokens=2
    )
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
