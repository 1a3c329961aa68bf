"""What a worker does before its order comes changes nothing of what comes out, and nothing of how it fails."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.errors import ErrorCode, ExitCode, UsageError
from trainer.ipc.worker_messages import TO_WORKER, Failed, Finished, ModelReady
from trainer.spec import JobSpec
from trainer.training.engines.base import choose_precision
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.progress import random_state
from trainer.worker.preload import garbage_collection_paused
from trainer.worker.preloaded_model import PreloadedModel

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
MODEL_READY = TO_WORKER.encode(ModelReady())

SHAKEN: dict[str, dict[str, object]] = {
    "lora": {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "train": {"learning_rate": 0.01, "max_steps": 3, "bf16": False, "neftune_noise_alpha": 5.0},
}
"""Draws from the generators in every step, so that their states at the first one show in the adapter."""


def adapter(ended: Any) -> bytes:
    assert ended.code == ExitCode.DONE, ended.log
    content: bytes = (ended.output_dir / "adapter" / "adapter_model.safetensors").read_bytes()
    return content


def facts(ended: Any) -> dict[str, Any]:
    finished = ended.messages[-1]
    assert isinstance(finished, Finished)
    return {name: value for name, value in finished.summary.items() if name != "seconds"}


@pytest.mark.parametrize("word", [MODEL_READY, b""], ids=["model loaded ahead", "imported ahead"])
def test_the_same_bits_come_out(
    run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec, word: bytes
) -> None:
    spec = make_spec(**SHAKEN)
    plain = run_worker(chat_file, spec)
    expected, expected_facts = adapter(plain), facts(plain)
    prepared = run_worker(chat_file, spec, ahead=word)
    assert adapter(prepared) == expected
    assert facts(prepared) == expected_facts
    assert not (prepared.output_dir / ".scratch").exists()
    assert prepared.out == b""


def test_it_was_loaded_before_the_order(
    run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec
) -> None:
    ended = run_worker(
        chat_file, make_spec(train={"max_steps": 1, "bf16": False}), ahead=MODEL_READY
    )
    seconds = json.loads((ended.output_dir / "report" / "summary.json").read_bytes())["seconds"]
    assert seconds["ahead"] > seconds["import"]


@pytest.mark.parametrize("ahead", [None, MODEL_READY], ids=["plain", "ahead"])
def test_a_model_that_cannot_be_loaded_fails_once_there_is_data(
    run_worker: RunWorker, chat_file: Path, tmp_path: Path, ahead: bytes | None
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors").write_bytes(b"no tensors")
    ended = run_worker(chat_file, model_dir=broken, ahead=ahead)
    (failed,) = ended.messages
    assert isinstance(failed, Failed)
    assert failed.code is ErrorCode.MODEL_INVALID
    assert not (ended.output_dir / ".scratch").exists()


def test_an_engine_that_is_not_there_fails_once_there_is_data(
    run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec
) -> None:
    ended = run_worker(chat_file, make_spec(train={"engine": "unsloth"}), ahead=MODEL_READY)
    (failed,) = ended.messages
    assert isinstance(failed, Failed)
    assert failed.code is ErrorCode.ENGINE_UNAVAILABLE


def test_what_is_no_preparation_is_refused_by_field() -> None:
    with pytest.raises(UsageError) as caught:
        TO_WORKER.parse(b'{"kind": "preparation", "spec": {"version": "canary"}}\n')
    assert "canary" not in str(caught.value)


@pytest.fixture
def loaded(tiny_model: Path, make_spec: MakeSpec) -> PreloadedModel:
    spec, loader = make_spec(), TransformersLoader()
    precision, _ = choose_precision(spec)
    torch.manual_seed(7)
    random.seed(7)
    model = loader.load(tiny_model, spec, precision)
    states = random_state(precision.device), random.getstate()
    return PreloadedModel(loader, spec, precision, model, states)


def test_the_generators_stand_where_loading_left_them(
    loaded: PreloadedModel, tiny_model: Path
) -> None:
    expected = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    model = loaded.model
    assert loaded.load(tiny_model, loaded.spec, loaded.precision) is model
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_a_model_is_given_away_once(loaded: PreloadedModel, tiny_model: Path) -> None:
    first = loaded.load(tiny_model, loaded.spec, loaded.precision)
    assert loaded.load(tiny_model, loaded.spec, loaded.precision) is not first


def test_other_numbers_are_loaded_anew(loaded: PreloadedModel, tiny_model: Path) -> None:
    other = replace(loaded.precision, weights=torch.bfloat16)
    model = loaded.load(tiny_model, loaded.spec, other)
    assert model is not loaded.model
    assert next(model.get_base_model().parameters()).dtype is torch.bfloat16


def test_garbage_is_collected_again_afterwards() -> None:
    with garbage_collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()
