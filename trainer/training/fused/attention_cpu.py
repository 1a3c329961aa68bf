"""Causal attention on a CPU, one rectangle of similarly long rows after another.

For each row and head, with queries Q (scaled), keys K and values V:

    forward    S = Q K^T + mask      P = softmax(S)      O = P V
    backward   dV = P^T dO           dP = dO V^T         dS = P * (dP - rowsum(P * dP))
               dQ = dS K             dK = dS^T Q

Two kernels compute it. `_ProductAttention` keeps P, which is small for short rows; in bfloat16 its backward pass
is several times as fast as that of the CPU's flash attention. `_FlashAttention` keeps one number for each query,
the logsumexp of its scores, and computes P again: for long rows, whose P would fill the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

from trainer.training.fused.attention_layout import AttentionLayout, Heads, Rectangle, RotaryTables
from trainer.training.fused.segments import Segments

MAX_PRODUCT_TOKENS: Final = 512
"""Up to this many tokens of the longest row, attention weights are kept for the backward pass."""


class RowAttention(Function):
    """Attention on a CPU, with rotary position embedding; see `attention_layout` for the arrangement."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads, segments: Segments, tables: RotaryTables) -> Tensor:
        """Computes attention as `attend` describes it: [tokens, query heads * head_dim]."""
        layout = segments.attention_layout(heads)
        kernel = _ProductAttention if segments.max_seqlen <= MAX_PRODUCT_TOKENS else _FlashAttention
        rotation = layout.rotation(tables)
        vectors = qkv.reshape(-1, heads.head_dim).index_select(0, layout.gather)
        # Rotated queries and keys exist twice where the model computes in 16 bits: in float32, for scores of full
        # precision, and rounded in `vectors`, which is what the backward pass reads.
        rounded = vectors[: len(rotation[0])]
        exact = rounded.float()
        _rotate(exact, rotation)
        if exact is not rounded:
            rounded.copy_(exact)
        output = vectors.new_empty(layout.num_queries, heads.head_dim)
        saved = kernel.forward(layout, vectors, exact, output)
        ctx.layout, ctx.kernel, ctx.rotation = layout, kernel, rotation
        ctx.save_for_backward(vectors, *saved)
        return output.index_select(0, layout.results).view(qkv.shape[0], -1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        """Computes the gradient of q, k and v: [tokens, all heads, head_dim]."""
        vectors, *saved = ctx.saved_tensors
        layout: AttentionLayout = ctx.layout
        heads = layout.heads
        doutput = grad_output.reshape(-1, heads.head_dim).index_select(0, layout.result_gradients)
        # A padded query repeats a real token; with no gradient it adds nothing to keys and values.
        doutput.index_fill_(0, layout.padding, 0.0)
        gradients = torch.empty_like(vectors)
        ctx.kernel.backward(layout, vectors, saved, doutput, gradients)
        rotated = gradients[: len(ctx.rotation[0])]
        rotated.copy_(_rotate(rotated.float(), ctx.rotation, backward=True))
        dqkv = gradients.index_select(0, layout.scatter).view(grad_output.shape[0], heads.total, heads.head_dim)
        # The scatter brought the prefix the gradient of its own rectangle; add those of the rows that see it.
        for rectangle in layout.rectangles:
            if rectangle.prefix_length:
                dqkv[rectangle.prefix, heads.query :] += _sum_prefix_gradients(layout, rectangle, gradients)
        return dqkv, None, None, None


def _rotate(x: Tensor, rotation: RotaryTables, *, backward: bool = False) -> Tensor:
    """Applies rotary factors to x, float32 [vectors, head_dim], in place; see `AttentionLayout.rotation`.

    A rotation is orthogonal: the gradient is rotated by the opposite angle, so the sine changes its sign.
    """
    half = x.shape[1] // 2
    swapped = torch.cat([x[:, half:], x[:, :half]], 1)
    return x.mul_(rotation[0]).addcmul_(swapped, rotation[1], value=-1 if backward else 1)


def _sum_prefix_gradients(layout: AttentionLayout, rectangle: Rectangle, gradients: Tensor) -> Tensor:
    """Sums the gradients of the prefix's keys and values over rows: float32 [prefix, 2 * key heads, head_dim]."""
    _, *keys_and_values = layout.split_sections(gradients)
    shape = (rectangle.rows, layout.heads.key, rectangle.key_length, layout.heads.head_dim)
    parts = (
        rectangle.view_keys(section).view(shape)[:, :, : rectangle.prefix_length] for section in keys_and_values
    )
    return torch.cat([part.sum(0, dtype=torch.float32) for part in parts]).transpose(0, 1)


class _ProductAttention:
    """Attention as plain batched matrix products: scores in float32, the rest in the inputs' dtype."""

    @staticmethod
    def forward(layout: AttentionLayout, vectors: Tensor, exact: Tensor, output: Tensor) -> list[Tensor]:
        """Writes O to `output`; returns each rectangle's P: [rows * key heads, queries per key * length, keys]."""
        all_queries, all_keys = torch.split(exact, [layout.num_queries, layout.num_keys])
        all_values = layout.split_sections(vectors)[2]
        saved = []
        for rectangle in layout.rectangles:
            query, key = rectangle.view_queries(all_queries), rectangle.view_keys(all_keys)
            # S = mask + Q K^T in one call; the softmax then overwrites S.
            scores = torch.baddbmm(
                rectangle.causal_mask.expand(query.shape[0], -1, -1), query, key.transpose(1, 2)
            )
            weights = torch.softmax(scores, -1, out=scores).to(vectors.dtype)
            torch.bmm(weights, rectangle.view_keys(all_values), out=rectangle.view_queries(output))
            saved.append(weights)
        return saved

    @staticmethod
    def backward(
        layout: AttentionLayout, vectors: Tensor, saved: list[Tensor], doutput: Tensor, gradients: Tensor
    ) -> None:
        """Writes dQ, dK and dV of each rectangle to `gradients`; formulas in the module."""
        sections, gradient_sections = layout.split_sections(vectors), layout.split_sections(gradients)
        for rectangle, weights in zip(layout.rectangles, saved, strict=True):
            query, key, value = _view_sections(rectangle, sections)
            dquery, dkey, dvalue = _view_sections(rectangle, gradient_sections)
            dout = rectangle.view_queries(doutput)
            dweights = torch.bmm(dout, value.transpose(1, 2))
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # noqa: SLF001
            torch.bmm(dscores, key, out=dquery)
            torch.bmm(dscores.transpose(1, 2), query, out=dkey)
            torch.bmm(weights.transpose(1, 2), dout, out=dvalue)


class _FlashAttention:
    """The CPU's flash attention, without shared prefixes: it takes as many keys as queries.

    The queries are scaled already by their rotary factors, hence `scale=1.0`.
    """

    @staticmethod
    def forward(layout: AttentionLayout, vectors: Tensor, _exact: Tensor, output: Tensor) -> list[Tensor]:
        """Writes O to `output`; returns it, and the logsumexp of each rectangle's scores."""
        sections, logsumexps = layout.split_sections(vectors), []
        for rectangle in layout.rectangles:
            result, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
                *_view_by_row(rectangle, sections), 0.0, True, scale=1.0
            )
            _view_by_row(rectangle, [output])[0].copy_(result)
            logsumexps.append(logsumexp)
        return [output, *logsumexps]

    @staticmethod
    def backward(
        layout: AttentionLayout, vectors: Tensor, saved: list[Tensor], doutput: Tensor, gradients: Tensor
    ) -> None:
        """Writes dQ, dK and dV of each rectangle to `gradients`."""
        sections, gradient_sections = layout.split_sections(vectors), layout.split_sections(gradients)
        output, *logsumexps = saved
        for rectangle, logsumexp in zip(layout.rectangles, logsumexps, strict=True):
            dout, result = _view_by_row(rectangle, [doutput])[0], _view_by_row(rectangle, [output])[0]
            computed = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
                dout, *_view_by_row(rectangle, sections), result, logsumexp, 0.0, True, scale=1.0
            )
            for target, gradient in zip(_view_by_row(rectangle, gradient_sections), computed, strict=True):
                target.copy_(gradient)


def _view_sections(rectangle: Rectangle, sections: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Views a rectangle's part of queries, keys and values, or of their gradients."""
    queries, keys, values = sections
    return rectangle.view_queries(queries), rectangle.view_keys(keys), rectangle.view_keys(values)


def _view_by_row(rectangle: Rectangle, sections: Sequence[Tensor]) -> list[Tensor]:
    """Views a rectangle's part of queries, and of keys and values if given: [rows, heads, length, head_dim]."""
    views = (rectangle.view_queries, rectangle.view_keys, rectangle.view_keys)
    return [
        view(section).view(rectangle.rows, -1, rectangle.length, rectangle.heads.head_dim)
        for view, section in zip(views, sections, strict=False)
    ]
