"""Architectures whose tensors are known without torch: every layer has the same modules.

Of others only the number of layers is judged here; the worker compares their tensors with the architecture itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LINEARS: Final = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_LLAMA: Final = (*LINEARS, "input_layernorm", "post_attention_layernorm")
_HEAD_NORMS: Final = ("self_attn.q_norm", "self_attn.k_norm")
_FEED_FORWARD_NORMS: Final = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_PHI3: Final = (
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "mlp.gate_up_proj",
    "mlp.down_proj",
    *_LLAMA[-2:],
)

LAYER_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": (*_LLAMA, *_HEAD_NORMS),
    "smollm3": _LLAMA,
    "granite": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": (*_LLAMA, *_FEED_FORWARD_NORMS),
    "gemma3_text": (*_LLAMA, *_FEED_FORWARD_NORMS, *_HEAD_NORMS),
    "phi3": _PHI3,
}
"""`model_type` → the modules of a layer that have a weight."""
