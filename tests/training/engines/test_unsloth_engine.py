"""What the engine unsloth refuses, as far as a process without unsloth shows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_packaging import ROOT, declared, entries
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec
from trainer.training.engines import unsloth_engine
from trainer.training.engines.base import Precision
from trainer.training.engines.base_model_loading import require_all_weights
from trainer.training.engines.transformers_engine import TransformersLoader

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)
NORM = "model.layers.0.input_layernorm.weight"


def test_the_release_is_the_locked_one() -> None:
    locked = dict(entries(ROOT / "requirements" / "image-cuda.txt"))
    assert {name.replace("_", "-") for name in unsloth_engine.TESTED} == {"unsloth", "unsloth-zoo"}
    assert (
        set(unsloth_engine.TESTED.values())
        == {locked["unsloth"]}
        == {declared("unsloth")["unsloth"]}
    )


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsloth_engine, "version", lambda _name: "2026.11.1")
    with pytest.raises(JobError, match="this release") as caught:
        unsloth_engine._require_tested_release()
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda tensors: tensors.pop(NORM), "missing: "),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "unknown: 1: extra"),
        (lambda tensors: tensors.update({NORM: torch.zeros(2)}), "of other shapes: "),
        (lambda tensors: None, ""),
    ],
)
def test_weights_are_judged_without_reading_them(
    edit: Callable[[dict[str, Any]], object], found: str, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    if not found:
        require_all_weights(tmp_path / "model")
        return
    with pytest.raises(JobError, match="do not have the tensors of its architecture") as caught:
        require_all_weights(tmp_path / "model")
    assert found in str(caught.value.found)


def test_a_model_that_is_not_as_the_spec_says_is_refused(
    tiny_model: Path, make_spec: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a release did not replace a pass, or chose other types, weights or checkpointing."""
    spec = make_spec()
    model = TransformersLoader().load(tiny_model, spec, CPU)
    layer = model.get_base_model().model.layers[0]

    def refused(reason: str, spec: JobSpec = spec, precision: Precision = CPU) -> None:
        with pytest.raises(JobError, match="another model than the job spec asks for") as caught:
            unsloth_engine._require_as_specified(model, spec, precision)
        assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
        assert reason in str(caught.value.found)

    refused("layers without unsloth's forward pass: layers.0, layers.1, layers.0.self_attn")
    monkeypatch.setattr(unsloth_engine, "_OWN", "transformers.")
    unsloth_engine._require_as_specified(model, spec, CPU)
    refused(
        "base weights that are not torch.bfloat16",
        precision=Precision(CPU.device, torch.bfloat16, autocast=True),
    )
    refused("gradient_checkpointing is not True", make_spec(train={"gradient_checkpointing": True}))
    layer.input_layernorm.weight.requires_grad_(True)
    refused("trained weights that are not float32 and LoRA's")
