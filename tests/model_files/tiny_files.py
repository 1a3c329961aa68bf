"""Writes the files of a base model with a few bytes of weights, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

Shapes = dict[str, list[int]]
Tensors = dict[str, tuple[str, list[int]]]
"""Name → type and shape."""

CONFIG: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
}


def llama_shapes() -> Shapes:
    """The tensors that CONFIG promises."""
    layer = {
        "self_attn.q_proj": [4, 4],
        "self_attn.k_proj": [2, 4],
        "self_attn.v_proj": [2, 4],
        "self_attn.o_proj": [4, 4],
        "mlp.gate_proj": [6, 4],
        "mlp.up_proj": [6, 4],
        "mlp.down_proj": [4, 6],
        "input_layernorm": [4],
        "post_attention_layernorm": [4],
    }
    outer = {
        "model.embed_tokens.weight": [10, 4],
        "model.norm.weight": [4],
        "lm_head.weight": [10, 4],
    }
    return outer | {
        f"model.layers.{number}.{name}.weight": shape
        for number in (0, 1)
        for name, shape in layer.items()
    }


def write_safetensors(path: Path, shapes: Mapping[str, list[int]]) -> None:
    """Writes a file of zeros, one byte for each element."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [end, end + prod(shape)]}
        end += prod(shape)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_model(folder: Path, shapes: Mapping[str, list[int]], **config: object) -> None:
    """Writes config.json and model.safetensors."""
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    write_safetensors(folder / "model.safetensors", shapes)


def write_index(folder: Path, files: Mapping[str, str]) -> None:
    """Writes an index: tensor → file."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def lora_tensors(shapes: Mapping[str, Sequence[int]], modules: list[str], rank: int = 2) -> Tensors:
    """The tensors of an adapter on modules whose weights have these shapes."""
    tensors: Tensors = {}
    for name in modules:
        outputs, inputs = shapes[f"{name}.weight"]
        tensors[f"base_model.model.{name}.lora_A.weight"] = ("F32", [rank, inputs])
        tensors[f"base_model.model.{name}.lora_B.weight"] = ("F32", [outputs, rank])
    return tensors


_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


def write_weights(
    path: Path, tensors: Mapping[str, tuple[str, list[int]]], fill: bytes = b"\0"
) -> None:
    """Writes a file of tensors as PEFT does: name → type and shape; `fill` is repeated."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = _SIZES[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (fill * end)[:end])
