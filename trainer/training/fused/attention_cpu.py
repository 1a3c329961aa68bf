"""Causal attention on a CPU over rows that stand behind one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

from trainer.training.fused.attention_layout import Heads, Layout, Rectangle, RotaryTables
from trainer.training.fused.segments import Segments

SHORT: Final = 512
"""Up to this many tokens a row's attention weights are kept whole on a CPU."""


class RowByRow(Function):
    """Attention on a CPU, once for each run of rows of like length; see `attention_layout`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads, segments: Segments, tables: RotaryTables) -> Tensor:
        """See `attend`."""
        layout, kernel = segments.layout(heads), _Products if segments.longest <= SHORT else _Flash
        rotation = layout.rotation(tables)
        vectors = qkv.reshape(-1, heads.width).index_select(0, layout.gather)
        turned = vectors[: len(rotation[0])]
        exact = turned.float()
        _rotate(exact, rotation)
        if exact is not turned:
            turned.copy_(exact)
        mixed = vectors.new_empty(layout.queries, heads.width)
        kept = kernel.forward(layout, vectors, exact, mixed)
        ctx.layout, ctx.kernel, ctx.rotation = layout, kernel, rotation
        ctx.save_for_backward(vectors, *kept)
        return mixed.index_select(0, layout.results).view(qkv.shape[0], -1)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        """The gradient of q, k and v; what is shared gets its rows' gradients added up."""
        vectors, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        heads = layout.heads
        dmixed = dout.reshape(-1, heads.width).index_select(0, layout.grouped)
        dmixed.index_fill_(0, layout.padding, 0.0)
        gradients = torch.empty_like(vectors)
        ctx.kernel.backward(layout, vectors, kept, dmixed, gradients)
        turned = gradients[: len(ctx.rotation[0])]
        turned.copy_(_rotate(turned.float(), ctx.rotation, back=True))
        dqkv = gradients.index_select(0, layout.scatter).view(dout.shape[0], heads.total, heads.width)
        for rectangle in layout.rectangles:
            if rectangle.shared:
                dqkv[rectangle.front, heads.query :] += _of_shared(layout, rectangle, gradients)
        return dqkv, None, None, None


def _rotate(x: Tensor, rotation: RotaryTables, *, back: bool = False) -> Tensor:
    """Rotary position embedding of float32 (vectors, width), in place; see `Layout.rotation`."""
    half = x.shape[1] // 2
    swapped = torch.cat([x[:, half:], x[:, :half]], 1)
    return x.mul_(rotation[0]).addcmul_(swapped, rotation[1], value=-1 if back else 1)


def _of_shared(layout: Layout, rectangle: Rectangle, gradients: Tensor) -> Tensor:
    """Keys' and values' gradients of the tokens in front, over all rows: float32 (front, 2 · key heads, width)."""
    _, *keys_and_values = layout.sections(gradients)
    shape = (rectangle.rows, layout.heads.key, rectangle.seen, layout.heads.width)
    parts = (rectangle.of_keys(section).view(shape)[:, :, : rectangle.shared] for section in keys_and_values)
    return torch.cat([part.sum(0, dtype=torch.float32) for part in parts]).transpose(0, 1)


class _Products:
    """Attention as plain batched products; scores in float32, the rest in the inputs' numbers.

    For short rows in bfloat16 several times quicker than the CPU's flash attention going backward.
    """

    @staticmethod
    def forward(layout: Layout, vectors: Tensor, exact: Tensor, mixed: Tensor) -> list[Tensor]:
        query, key = torch.split(exact, [layout.queries, layout.keys])
        value = layout.sections(vectors)[2]
        kept = []
        for part in layout.rectangles:
            asked, seen = part.of_queries(query), part.of_keys(key).transpose(1, 2)
            scores = torch.baddbmm(part.future.expand(asked.shape[0], -1, -1), asked, seen)
            weights = torch.softmax(scores, -1, out=scores).to(vectors.dtype)
            torch.bmm(weights, part.of_keys(value), out=part.of_queries(mixed))
            kept.append(weights)
        return kept

    @staticmethod
    def backward(layout: Layout, vectors: Tensor, kept: list[Tensor], dmixed: Tensor, gradients: Tensor) -> None:
        query, key, value = layout.sections(vectors)
        dquery, dkey, dvalue = layout.sections(gradients)
        for part, weights in zip(layout.rectangles, kept, strict=True):
            wanted = part.of_queries(dmixed)
            dweights = torch.bmm(wanted, part.of_keys(value).transpose(1, 2))
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # noqa: SLF001
            torch.bmm(dscores, part.of_keys(key), out=part.of_queries(dquery))
            torch.bmm(dscores.transpose(1, 2), part.of_queries(query), out=part.of_keys(dkey))
            torch.bmm(weights.transpose(1, 2), wanted, out=part.of_keys(dvalue))


class _Flash:
    """The CPU's flash attention: for long rows, whose weights would fill the memory. It knows nothing shared."""

    @staticmethod
    def forward(layout: Layout, vectors: Tensor, _exact: Tensor, mixed: Tensor) -> list[Tensor]:
        sections, logsumexps = layout.sections(vectors), []
        for part in layout.rectangles:
            here, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
                *_by_row(part, sections), 0.0, True, scale=1.0
            )
            _by_row(part, [mixed])[0].copy_(here)
            logsumexps.append(logsumexp)
        return [mixed, *logsumexps]

    @staticmethod
    def backward(layout: Layout, vectors: Tensor, kept: list[Tensor], dmixed: Tensor, gradients: Tensor) -> None:
        sections, targets = layout.sections(vectors), layout.sections(gradients)
        mixed, *logsumexps = kept
        for part, logsumexp in zip(layout.rectangles, logsumexps, strict=True):
            wanted, result = _by_row(part, [dmixed])[0], _by_row(part, [mixed])[0]
            made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
                wanted, *_by_row(part, sections), result, logsumexp, 0.0, True, scale=1.0
            )
            for target, gradient in zip(_by_row(part, targets), made, strict=True):
                target.copy_(gradient)


def _by_row(part: Rectangle, sections: Sequence[Tensor]) -> list[Tensor]:
    """A rectangle's part of queries, and of keys and values where given: (rows, heads, length, width)."""
    cut = (part.of_queries, part.of_keys, part.of_keys)
    return [
        view(section).view(part.rows, -1, part.length, part.heads.width)
        for view, section in zip(cut, sections, strict=False)
    ]
