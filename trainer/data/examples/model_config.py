"""A base model's config.json: its form, the number of positions, and what the architecture lacks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trainer.errors import ErrorCode, JobError
from trainer.spec import Engine, JobSpec

_POSITION_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "seq_length",
)
"""Names of the number of positions in the configurations of transformers, the usual one first."""

ARCHITECTURES_WITHOUT: Final[Mapping[str, frozenset[str]]] = {
    "sdpa": frozenset({
        "big_bird", "bigbird_pegasus", "bloom", "codegen", "cpmant", "deepseek_v4", "falcon_mamba", "git",
        "got_ocr2", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "gptj", "granite_swa", "granitemoe_swa",
        "hy_v4", "mamba", "mamba2", "megatron-bert", "mimo_v2_flash", "mpt", "mvp", "openai-gpt",
        "prophetnet", "reformer", "rembert", "roformer", "rwkv", "trocr", "xglm", "xlm", "xlnet", "xlstm",
    }),
    "flash_attention": frozenset({
        "axk2", "big_bird", "bigbird_pegasus", "bloom", "blt", "codegen", "cpmant", "deepseek_v32",
        "deepseek_v4", "doge", "falcon_mamba", "git", "glm_moe_dsa", "got_ocr2", "gpt_neox_japanese",
        "hy_v4", "inkling_text", "llama4", "llama4_text", "mamba", "mamba2", "megatron-bert",
        "minimax_m3_vl_text", "mpt", "mvp", "openai-gpt", "prophetnet", "qwen4_exp", "qwen4_exp_text",
        "reformer", "rembert", "roformer", "rwkv", "trocr", "xglm", "xlm", "xlnet", "xlstm",
    }),
}  # fmt: skip
"""Attention without the number of its version → architectures (`model_type`) whose causal language model in
transformers lacks it. Every architecture has `eager`."""

UNSLOTH_ARCHITECTURES: Final[Mapping[str, frozenset[str]]] = {
    "llama": frozenset({"default", "llama3"}),
    "mistral": frozenset({"default"}),
    "qwen2": frozenset({"default"}),
    "qwen3": frozenset({"default"}),
}
"""Architecture (`model_type`) whose forward passes in unsloth were compared with those of transformers → kinds of
rotary positions it was compared with. For longer rows unsloth replaces any other kind by a linear one."""


def read_config(model_dir: Path) -> dict[str, Any]:
    """Returns the content of config.json.

    Raises:
        JobError: `MODEL_INVALID`: there is no such object, or it names code.
    """
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise JobError(
            ErrorCode.MODEL_INVALID, "the base model's config.json cannot be read"
        ) from error
    if not isinstance(config, dict):
        raise JobError(ErrorCode.MODEL_INVALID, "the base model's config.json is not an object")
    if "auto_map" in config:  # names Python classes for transformers to import
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's config.json names code of its own",
            expected="an architecture that transformers implements",
            found="auto_map",
        )
    return config


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Returns the number of rows of the embedding; None if the configuration does not say."""
    text = config.get("text_config", config)
    size = text.get("vocab_size") if isinstance(text, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def context_length(config: Mapping[str, Any]) -> int | None:
    """Returns the number of positions that a base model was made for; None if its config.json does not say.

    Where rotary positions are scaled, the configurations differ in what they state: the length before scaling, or
    the one after it. The length is the larger one of what is stated and of the scaled original length.
    """
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        return None
    stated = next((text[key] for key in _POSITION_KEYS if _is_count(text.get(key))), None)
    if stated is None:
        return None
    lengths = [int(stated)]
    for scaling in _rope_scalings(text):
        factor, original = (
            scaling.get("factor"),
            scaling.get("original_max_position_embeddings", stated),
        )
        if isinstance(factor, int | float) and math.isfinite(factor) and _is_count(original):
            lengths.append(int(factor * original))
    return max(lengths)


def check_architecture(config: Mapping[str, Any], spec: JobSpec) -> None:
    """Requires that the engine has the architecture, and the architecture the attention implementation.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    architecture, implementation = str(config.get("model_type")), spec.model.attn_implementation
    if spec.train.engine is Engine.UNSLOTH:  # it brings its own attention
        _require_tested_with_unsloth(config, architecture)
        return
    if architecture in ARCHITECTURES_WITHOUT.get(re.sub(r"_\d$", "", implementation), frozenset()):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            f"the base model's architecture {architecture} lacks an attention implementation",
            expected="model.attn_implementation eager",
            found=implementation,
            hint="set model.attn_implementation: eager",
        )


def _require_tested_with_unsloth(config: Mapping[str, Any], architecture: str) -> None:
    """Refuses a base model of which it was not shown that unsloth computes what transformers computes.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    positions = UNSLOTH_ARCHITECTURES.get(architecture, frozenset())
    # unsloth's MLP has SiLU, its attention no dropout, and that of Qwen no window, whatever config.json says.
    tested: dict[str, tuple[Iterable[object], Collection[object]]] = {
        "model_type": ([architecture], sorted(UNSLOTH_ARCHITECTURES)),
        "max_position_embeddings": (
            ["stated" if context_length(config) else "missing"],
            ["stated"],
        ),
        "rope_type": (
            [
                str(scaling.get("rope_type", scaling.get("type", "default")))
                for scaling in _rope_scalings(config)
            ],
            sorted(positions),
        ),
        "hidden_act": ([config.get("hidden_act", "silu")], ["silu"]),
        "attention_dropout": ([config.get("attention_dropout") or 0], [0]),
        "use_sliding_window": ([config.get("use_sliding_window") or False], [False]),
        "layer_types": (config.get("layer_types") or [], ["full_attention"]),
    }
    for key, (values, expected) in tested.items():
        for found in values:
            if found not in expected:
                raise JobError(
                    ErrorCode.MODEL_INVALID,
                    f"train.engine unsloth is not tested with this base model: {key} of its config.json",
                    expected=" or ".join(map(str, expected)),
                    found=str(found)[:100],
                    hint="set train.engine: transformers",
                )


def _rope_scalings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the parameters of rotary positions: one set for all layers, or one for each kind of layer."""
    for name in ("rope_scaling", "rope_parameters"):
        parameters = config.get(name)
        if isinstance(parameters, dict):
            yield parameters
            yield from (value for value in parameters.values() if isinstance(value, dict))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
