"""Causal attention over rows that stand behind one another without padding; no row sees another."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.training.fused.attention_cpu import RowByRow
from trainer.training.fused.attention_layout import Heads, RotaryTables
from trainer.training.fused.blocks import Rotation
from trainer.training.fused.segments import Segments


def attend(qkv: Tensor, heads: Heads, segments: Segments, tables: RotaryTables) -> Tensor:
    """Attention with rotary position embedding: (tokens, all heads, width) → (tokens, query heads · width).

    Args:
        qkv: what a layer makes of its input, before the rotation; on a GPU it is rotated in place.
        heads: how its columns are cut.
        segments: the rows.
        tables: the rotation of each token.
    """
    if qkv.is_cuda:
        turned = Rotation.apply(qkv, heads.query + heads.key, tables)  # type: ignore[no-untyped-call]
        return _attend_cuda(turned, heads, segments)
    result: Tensor = RowByRow.apply(qkv, heads, segments, tables)  # type: ignore[no-untyped-call]
    return result


def _attend_cuda(qkv: Tensor, heads: Heads, segments: Segments) -> Tensor:
    """One kernel for all rows; needs 16-bit numbers."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 -- CUDA only

    query, key, value = torch.split(qkv, [heads.query, heads.key, heads.key], dim=1)
    bounds, longest = segments.bounds, segments.longest
    result = varlen_attn(
        query, key, value, bounds, bounds, longest, longest,
        scale=heads.scale, window_size=(-1, 0), enable_gqa=heads.query != heads.key,
    )  # fmt: skip
    mixed = result[0] if isinstance(result, tuple) else result
    return mixed.flatten(1)
