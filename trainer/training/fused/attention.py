"""Causal attention over rows that are concatenated without padding; no row attends to another."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.training.fused.attention_cpu import RowAttention
from trainer.training.fused.attention_layout import Heads, RotaryTables
from trainer.training.fused.blocks import RotaryEmbedding
from trainer.training.fused.segments import Segments


def attend(qkv: Tensor, heads: Heads, segments: Segments, tables: RotaryTables) -> Tensor:
    """Computes softmax(rotate(q) rotate(k)^T * scale + causal mask) v for each row and head.

    Args:
        qkv: a layer's queries, keys and values before the rotation: [tokens, all heads, head_dim]. On a GPU they
            are rotated in place.
        heads: how many of those heads are queries, keys and values.
        segments: the rows.
        tables: rotary cosines and sines of each token.

    Returns:
        [tokens, query heads * head_dim].
    """
    if qkv.is_cuda:
        rotated = RotaryEmbedding.apply(qkv, heads.query + heads.key, tables)  # type: ignore[no-untyped-call]
        return _attend_cuda(rotated, heads, segments)
    result: Tensor = RowAttention.apply(qkv, heads, segments, tables)  # type: ignore[no-untyped-call]
    return result


def _attend_cuda(qkv: Tensor, heads: Heads, segments: Segments) -> Tensor:
    """Runs one flash-attention kernel for all rows; it needs 16-bit numbers, and rows without a shared prefix."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 -- CUDA only

    # Views of [tokens, heads, head_dim]; the kernel takes query and key heads in different numbers.
    query, key, value = torch.split(qkv, [heads.query, heads.key, heads.key], dim=1)
    cu_seqlens, max_seqlen = segments.cu_seqlens, segments.max_seqlen
    if cu_seqlens is None:
        raise ValueError("attention on a GPU cannot share prefixes")
    # Any number of earlier tokens (-1), no later one (0): causal.
    result = varlen_attn(
        query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
        scale=heads.scale, window_size=(-1, 0), enable_gqa=heads.query != heads.key,
    )  # fmt: skip
    output = result[0] if isinstance(result, tuple) else result
    return output.flatten(1)
