"""What config.json says of positions and attention, as the provider's machine and the job read it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from trainer.data.examples.model_config import (
    ARCHITECTURES_WITHOUT,
    check_architecture,
    context_length,
    read_config,
)
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"auto_map": {}}'])
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(JobError, match=r"config\.json") as caught:
        read_config(tmp_path)
    assert caught.value.code is ErrorCode.MODEL_INVALID


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": True}, None),
        ({"text_config": []}, None),
        ({"max_position_embeddings": 8192}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 2}}, 4096),
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": LLAMA3}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {"full_attention": YARN, "sliding": {}},
            },
            131072,
        ),
        ({"max_position_embeddings": 8, "rope_scaling": {"factor": float("inf")}}, 8),
    ],
)
def test_the_context_is_what_positions_were_made_for(
    config: dict[str, Any], length: int | None
) -> None:
    assert context_length(config) == length


def spec(attention: str | None, engine: str = "transformers") -> JobSpec:
    model: dict[str, object] = {
        "model_name_or_path": "./m",
        "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
    }
    if attention is not None:
        model["attn_implementation"] = attention
    return JobSpec.model_validate_json(
        json.dumps({"version": 1, "model": model, "train": {"engine": engine}})
    )


@pytest.mark.parametrize(
    ("architecture", "attention", "lacks"),
    [
        ("gpt_oss", "sdpa", True),
        ("gpt_oss", "flash_attention_2", False),
        ("gpt_oss", "eager", False),
        ("bloom", "flash_attention_3", True),
        ("llama", "sdpa", False),
        (["x"], "sdpa", False),
    ],
)
def test_an_attention_that_the_architecture_lacks(
    architecture: object, attention: str, lacks: bool
) -> None:
    config = {"model_type": architecture}
    if not lacks:
        check_architecture(config, spec(attention))
        return
    with pytest.raises(JobError, match="lacks an attention implementation") as caught:
        check_architecture(config, spec(attention))
    assert caught.value.hint == "set model.attn_implementation: eager"


PLAIN: dict[str, Any] = {"max_position_embeddings": 512}


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_type": "llama",
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
            "hidden_act": "silu",
        },
        {"model_type": "llama", "rope_scaling": LLAMA3},
        {"model_type": "mistral", "sliding_window": 8, "rope_scaling": None},
        {"model_type": "qwen2", "use_sliding_window": False, "layer_types": ["full_attention"]},
        {"model_type": "qwen3", "attention_dropout": 0.0},
    ],
)
def test_a_base_model_that_unsloth_was_tested_with(config: dict[str, Any]) -> None:
    check_architecture(PLAIN | config, spec(None, engine="unsloth"))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        *(
            ({"model_type": name}, "model_type")
            for name in ("gpt_oss", "gemma3_text", "phi3", None, ["llama"])
        ),
        ({"model_type": "llama", "max_position_embeddings": None}, "max_position_embeddings"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "llama", "attention_dropout": 0.1}, "attention_dropout"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        ({"model_type": "llama", "rope_parameters": YARN}, "rope_type"),
        ({"model_type": "llama", "rope_parameters": {"full_attention": YARN}}, "rope_type"),
        ({"model_type": "qwen2", "rope_parameters": LLAMA3}, "rope_type"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types",
        ),
    ],
)
def test_a_base_model_that_unsloth_was_not_tested_with(config: dict[str, Any], key: str) -> None:
    with pytest.raises(JobError, match=f"not tested with this base model: {key} of") as caught:
        check_architecture(PLAIN | config, spec(None, engine="unsloth"))
    assert caught.value.code is ErrorCode.MODEL_INVALID
    assert caught.value.hint == "set train.engine: transformers"


def test_the_list_is_that_of_transformers() -> None:
    """By the text of the models' modules: to import all of them takes minutes."""
    found = importlib.util.find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    models = Path(found.origin).parent / "models"
    mapping = (models / "auto" / "modeling_auto.py").read_text()
    listed = re.search(
        r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = .*?^\)", mapping, re.DOTALL | re.MULTILINE
    )
    assert listed is not None
    architectures = dict(re.findall(r'\("([\w-]+)", "(\w+)"\)', listed[0]))
    without: dict[str, set[str]] = {"sdpa": set(), "flash_attention": set()}
    for path in models.glob("*/modeling_*.py"):
        text = path.read_text()
        classes = set(re.findall(r"^class (\w+)\(", text, re.MULTILINE))
        here = {architecture for architecture, name in architectures.items() if name in classes}
        if not re.search("_supports_sdpa *= *True", text):
            without["sdpa"] |= here
        if not re.search("_supports_flash_attn(_2)? *= *True", text):
            without["flash_attention"] |= here
    assert without == ARCHITECTURES_WITHOUT
