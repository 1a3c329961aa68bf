"""Which engine and which numbers a spec gets here, and which base models are refused before or while loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training.adapter import save_adapter
from trainer.training.engines import base
from trainer.training.engines.base import choose_precision
from trainer.training.engines.base_model_loading import check_model_dir
from trainer.training.engines.choice import choose_engine
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.engines.unsloth_engine import UnslothLoader
from trainer.training.tokenizer import load_tokens

MakeSpec = Callable[..., JobSpec]


def edit_config(**values: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}))

    return edit


BAD_MODELS: dict[str, Callable[[Path], object]] = {
    "pickle": lambda directory: (directory / "pytorch_model.bin").write_bytes(b"\x80\x04."),
    "code": lambda directory: (directory / "modeling.py").write_text("raise SystemExit(99)"),
    "code of its own": edit_config(auto_map={"AutoModelForCausalLM": "modeling.Model"}),
    "no weights": lambda directory: (directory / "model.safetensors").unlink(),
    "cut weights": lambda directory: (directory / "model.safetensors").write_bytes(b"\0" * 100),
    "unknown architecture": edit_config(model_type="no-such-thing"),
    "other shapes": edit_config(intermediate_size=64),
    "no tokenizer": lambda directory: (directory / "tokenizer.json").unlink(),
    "not json": lambda directory: (directory / "config.json").write_text("{"),
    "not an object": lambda directory: (directory / "config.json").write_text("[]"),
}


def load_all(directory: Path, spec: JobSpec) -> Any:
    """What the worker does with a model directory, in its order."""
    check_model_dir(directory, spec)
    load_tokens(directory)
    return TransformersLoader().load(directory, spec, choose_precision(spec)[0])


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_models_are_refused(
    kind: str, tmp_path: Path, tiny_model: Path, make_spec: MakeSpec
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    BAD_MODELS[kind](tmp_path / "model")
    with pytest.raises(JobError) as caught:
        load_all(tmp_path / "model", make_spec())
    assert caught.value.code is ErrorCode.MODEL_INVALID
    assert str(tmp_path) not in str(caught.value)


def test_a_good_model_gets_a_fresh_adapter_in_float32(
    tiny_model: Path, make_spec: MakeSpec
) -> None:
    model = load_all(tiny_model, make_spec())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name and p.dtype is torch.float32 for name, p in trainable.items())
    assert all((p == 0).all() for name, p in trainable.items() if "lora_B" in name)


def test_target_modules_that_the_model_lacks_are_refused(
    tiny_model: Path, make_spec: MakeSpec
) -> None:
    with pytest.raises(JobError, match="no module of a name") as caught:
        load_all(tiny_model, make_spec(lora={"lora_target_modules": ["no_such_proj"]}))
    assert caught.value.code is ErrorCode.MODEL_INVALID


@pytest.mark.parametrize("named", ["all-linear", ["q_proj", "v_proj", "k_proj"]])
def test_an_adapter_names_the_base_model_as_the_spec_does(
    named: object, tiny_model: Path, make_spec: MakeSpec, tmp_path: Path
) -> None:
    revision = "ab" * 20
    spec = make_spec(
        model={"model_name_or_path": "org/some-model", "model_revision": revision},
        lora={"lora_target_modules": named},
    )
    save_adapter(load_all(tiny_model, spec), spec.model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/some-model", revision)
    assert config["target_modules"] == sorted(config["target_modules"])
    for path in (tmp_path / "adapter").iterdir():
        assert str(tiny_model).encode() not in path.read_bytes()


NEEDS_GPU: tuple[dict[str, Any], ...] = (
    {"train": {"engine": "unsloth"}},
    {"model": {"load_in_4bit": True}},
    {"model": {"load_in_8bit": True}},
)


@pytest.mark.parametrize("section", NEEDS_GPU)
def test_what_needs_a_gpu_is_refused_without_one(
    section: dict[str, Any], make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(JobError, match="a CUDA GPU") as caught:
        choose_engine(make_spec(**section))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize("section", NEEDS_GPU)
def test_what_needs_a_package_is_refused_without_it(
    section: dict[str, Any], make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(base, "find_spec", lambda _package: None)
    with pytest.raises(JobError, match="without the package") as caught:
        choose_engine(make_spec(**section))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


def test_the_unsloth_engine_cannot_be_made_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(JobError) as caught:
        UnslothLoader()
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize(
    ("dtype", "bf16", "quick", "weights", "autocast", "warnings"),
    [
        ("bfloat16", True, True, torch.bfloat16, True, 0),
        ("float32", True, True, torch.float32, True, 0),
        ("float32", False, True, torch.float32, False, 0),
        ("bfloat16", True, False, torch.float32, False, 2),
        ("float16", False, True, torch.float32, False, 1),
    ],
)
def test_precision_on_a_cpu(
    dtype: str,
    bf16: bool,
    quick: bool,
    weights: torch.dtype,
    autocast: bool,
    warnings: int,
    make_spec: MakeSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: quick)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    precision, said = choose_precision(make_spec(model={"dtype": dtype}, train={"bf16": bf16}))
    assert (precision.weights, precision.autocast, len(said)) == (weights, autocast, warnings)
