"""What the files of a base model are refused for, by names and shapes alone: without weights and torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model_files.tiny_files import (
    Shapes,
    llama_shapes,
    write_index,
    write_model,
    write_safetensors,
)
from trainer.errors import ErrorCode, JobError
from trainer.model_files.model_check import ModelFiles, check_model_files
from trainer.spec import JobSpec


def spec(**sections: dict[str, object]) -> JobSpec:
    model = {
        "model_name_or_path": "./m",
        "model_file_sha256": {"config.json": "0" * 64, "a.safetensors": "0" * 64},
    }
    document = {"version": 1, **sections, "model": model | sections.get("model", {})}
    return JobSpec.model_validate_json(json.dumps(document))


def check(folder: Path, **sections: dict[str, object]) -> ModelFiles:
    return check_model_files(folder, {path.name for path in folder.iterdir()}, spec(**sections))


def refusal(folder: Path, **sections: dict[str, object]) -> str:
    with pytest.raises(JobError) as refused:
        check(folder, **sections)
    assert refused.value.code is ErrorCode.MODEL_INVALID
    return str(refused.value)


def test_a_whole_model_is_listed(tmp_path: Path) -> None:
    write_model(tmp_path, llama_shapes())
    found = check(tmp_path)
    assert found.config["hidden_size"] == 4
    assert found.tensors is not None
    assert found.tensors.shapes["lm_head.weight"] == (10, 4)
    assert "model.norm" not in found.tensors.modules
    assert "model.layers.1.mlp.up_proj" in found.tensors.modules


def without(*parts: str) -> Shapes:
    return {
        name: shape
        for name, shape in llama_shapes().items()
        if not any(part in name for part in parts)
    }


def renamed(old: str, new: str) -> Shapes:
    return {name.replace(old, new): shape for name, shape in llama_shapes().items()}


MLP = "6: model.layers.0.mlp.down_proj"
BROKEN: dict[str, tuple[Shapes, dict[str, object], str]] = {
    "the feed-forward network of one layer": (
        without("layers.1.mlp"),
        {},
        "3: model.layers.1.mlp.down_proj",
    ),
    "a layer": (without("layers.1."), {}, "layers 0 to 1, got no 1: model.layers.1"),
    "the usual names": (renamed("mlp", "ffn"), {}, MLP),
    "quantized projections": (
        renamed("_proj.weight", "_proj.qweight"),
        {},
        "14: model.layers.0.mlp.down_proj",
    ),
    "a configuration of all layers": (
        llama_shapes(),
        {"num_hidden_layers": 1},
        "1 more layers",
    ),
    "the embedding": (without("embed_tokens"), {}, "1: model.embed_tokens.weight"),
    "the norm": (without("model.norm"), {}, "1: model.norm.weight"),
    "an untied head": (without("lm_head"), {}, "lm_head.weight (tie_word_embeddings is false)"),
    "its vocabulary": (
        llama_shapes(),
        {"vocab_size": 12},
        "model.embed_tokens.weight [10, 4] for [12, 4]",
    ),
    "its width": (llama_shapes(), {"intermediate_size": 8}, MLP + ".weight [4, 6] for [4, 8]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_lacks_something_is_refused_by_names_and_counts(
    case: str, tmp_path: Path
) -> None:
    shapes, config, part = BROKEN[case]
    write_model(tmp_path, shapes, **config)
    message = refusal(tmp_path)
    assert part in message
    assert len(message) < 1000


def test_a_tied_head_needs_no_weights(tmp_path: Path) -> None:
    write_model(tmp_path, without("lm_head"), tie_word_embeddings=True)
    check(tmp_path)


def test_of_an_unknown_architecture_the_layers_are_counted(tmp_path: Path) -> None:
    write_model(tmp_path, without("layers.1.mlp"), model_type="another")
    check(tmp_path)
    write_model(tmp_path, without("layers.1."), model_type="another")
    assert "no 1: model.layers.1" in refusal(tmp_path)


def test_a_language_model_within_another_is_judged_by_its_own_configuration(tmp_path: Path) -> None:
    write_model(tmp_path, llama_shapes())
    text = json.loads((tmp_path / "config.json").read_bytes())
    tower = {f"vision_tower.layers.{number}.mlp.fc1.weight": [2, 2] for number in range(3)}
    named = {f"language_model.{name}": shape for name, shape in llama_shapes().items()}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    write_safetensors(tmp_path / "model.safetensors", tower | named)
    check(tmp_path)
    del named["language_model.model.layers.0.mlp.up_proj.weight"]
    write_safetensors(tmp_path / "model.safetensors", tower | named)
    assert "1: language_model.model.layers.0.mlp.up_proj.weight" in refusal(tmp_path)


# files


def sharded(folder: Path) -> dict[str, str]:
    """Writes a model in two files; returns its index."""
    write_model(folder, {})
    (folder / "model.safetensors").unlink()
    files: dict[str, Shapes] = {"a.safetensors": {}, "b.safetensors": {}}
    places = {
        name: "a.safetensors" if "layers.0" in name else "b.safetensors" for name in llama_shapes()
    }
    for name, shape in llama_shapes().items():
        files[places[name]][name] = shape
    for name, shapes in files.items():
        write_safetensors(folder / name, shapes)
    write_index(folder, places)
    return places


def test_an_index_names_files_and_tensors_that_exist(tmp_path: Path) -> None:
    places = sharded(tmp_path)
    check(tmp_path)
    write_index(tmp_path, places | {"model.extra.weight": "b.safetensors"})
    assert "no 1: model.extra.weight" in refusal(tmp_path)
    write_index(tmp_path, places | {"model.extra.weight": "c.safetensors"})
    assert "no 1: c.safetensors" in refusal(tmp_path)


def test_without_weight_files_the_index_alone_is_judged(tmp_path: Path) -> None:
    places = sharded(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    for name in set(places.values()):
        (tmp_path / name).unlink()
    found = check_model_files(tmp_path, names, spec())
    assert found.tensors is not None
    assert set(found.tensors.shapes.values()) == {None}
    del places["model.layers.0.mlp.up_proj.weight"]
    write_index(tmp_path, places)
    with pytest.raises(JobError, match=r"no 1: model\.layers\.0\.mlp\.up_proj\.weight"):
        check_model_files(tmp_path, names, spec())


def test_without_weights_and_index_nothing_is_said_of_tensors(tmp_path: Path) -> None:
    write_model(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    assert check_model_files(tmp_path, {"config.json", "model.safetensors"}, spec()).tensors is None


def replace_by_broken_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text("[]")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "unused weights": (
        "also 1: b.safetensors",
        lambda folder: write_safetensors(folder / "b.safetensors", {}),
    ),
    "an adapter": (
        "(adapter_config.json)",
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
    ),
    "a cut file": (
        "in the format",
        lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 9),
    ),
    "another name": (
        "c.safe",
        lambda folder: (folder / "model.safetensors").rename(folder / "c.safetensors"),
    ),
    "an index of another form": ("weight_map", replace_by_broken_index),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_transformers_would_not_load_are_refused(change: str, tmp_path: Path) -> None:
    write_model(tmp_path, llama_shapes())
    part, edit = CHANGES[change]
    edit(tmp_path)
    assert part in refusal(tmp_path)


def test_names_that_no_module_has_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, without("lm_head"), tie_word_embeddings=True)
    check(tmp_path, lora={"lora_target_modules": ["q_proj", "embed_tokens", "lm_head"]})
    message = refusal(tmp_path, lora={"lora_target_modules": ["q_proj", "qkv_prj", "gate_up_proj"]})
    assert "2: lora.lora_target_modules gate_up_proj, lora.lora_target_modules qkv_prj" in message


# quantization


@pytest.mark.parametrize("scheme", ["gptq", "awq", "fp8", "mxfp4", "compressed-tensors", None])
@pytest.mark.parametrize("nested", [False, True])
def test_other_schemes_of_quantization_are_refused(
    scheme: str | None, nested: bool, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "quantization_config": {"bits": 4} | ({"quant_method": scheme} if scheme else {})
    }
    write_model(tmp_path, llama_shapes(), **({"text_config": settings} if nested else settings))
    assert f"got {scheme or 'unknown'}" in refusal(tmp_path)


def test_weights_of_bitsandbytes_need_the_same_bits_in_the_job_spec(tmp_path: Path) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    write_model(tmp_path, llama_shapes(), quantization_config=settings, model_type="another")
    assert "model.load_in_4bit: true" in refusal(tmp_path)
    assert "model.load_in_4bit: true" in refusal(tmp_path, model={"load_in_8bit": True})
    check(tmp_path, model={"load_in_4bit": True})
    assert "merged_16bit" in refusal(
        tmp_path, model={"load_in_4bit": True}, output={"merged_16bit": True}
    )


def test_a_configuration_that_names_other_weights_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, llama_shapes(), transformers_weights="other.safetensors")
    assert "transformers_weights" in refusal(tmp_path)
