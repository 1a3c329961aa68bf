"""Causal attention over rows that stand behind one another without padding; no row sees another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

SHORT: Final = 512
"""Up to this many tokens a row's attention weights are kept whole on a CPU."""


@dataclass(frozen=True)
class Segments:
    """Where rows begin and end in a run of tokens.

    Attributes:
        lengths: of each row, in order; on the host.
        bounds: int32 [rows + 1] on the device: where each row begins, and where the last one ends.
    """

    lengths: tuple[int, ...]
    bounds: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """Neighbours of one length: (first token, rows, length)."""
        return tuple(_runs(self.lengths))


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    start = 0
    for length, same in groupby(lengths):
        rows = len(list(same))
        yield start, rows, length
        start += rows * length


@dataclass(frozen=True)
class Heads:
    """How the columns of a q, k, v product are cut: (query + 2 · key) heads of one width; scores times `scale`."""

    query: int
    key: int
    width: int
    scale: float

    @property
    def total(self) -> int:
        """Heads of q, k and v together."""
        return self.query + 2 * self.key


def attend(qkv: Tensor, heads: Heads, segments: Segments) -> Tensor:
    """Attention: (tokens, all heads, width) → (tokens, query heads · width)."""
    if qkv.is_cuda:
        return _attend_cuda(qkv, heads, segments)
    result: Tensor = _RowByRow.apply(qkv, heads, segments)  # type: ignore[no-untyped-call]
    return result


def _attend_cuda(qkv: Tensor, heads: Heads, segments: Segments) -> Tensor:
    """One kernel for all rows; needs 16-bit numbers."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 -- CUDA only

    query, key, value = qkv.split([heads.query, heads.key, heads.key], dim=1)
    bounds, longest = segments.bounds, segments.longest
    result: Tensor = varlen_attn(
        query, key, value, bounds, bounds, longest, longest,
        scale=heads.scale, window_size=(-1, 0), enable_gqa=heads.query != heads.key,
    )  # fmt: skip
    return result.flatten(1)


class _RowByRow(Function):
    """Attention on a CPU, once for each run of rows of one length, on slices: nothing is padded."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads, segments: Segments) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], heads.query, heads.width)
        kept = []
        for start, rows, length in segments.runs:
            here = slice(start, start + rows * length)
            kernel = _Products if length <= SHORT else _Flash
            kept.append(kernel.forward(_Run(qkv[here], heads, rows), out[here]))
        ctx.heads, ctx.segments = heads, segments
        ctx.save_for_backward(qkv, out, *kept)
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        qkv, out, *kept = ctx.saved_tensors
        heads, dqkv = ctx.heads, torch.empty_like(qkv)
        dout = dout.view_as(out)
        for (start, rows, length), saved in zip(ctx.segments.runs, kept, strict=True):
            here = slice(start, start + rows * length)
            kernel = _Products if length <= SHORT else _Flash
            gradients = _Run(dqkv[here], heads, rows)
            kernel.backward(_Run(qkv[here], heads, rows), out[here], saved, dout[here], gradients)
        return dqkv, None, None


@dataclass(frozen=True)
class _Run:
    """Rows of one length: `qkv` is (rows · length, all heads, width)."""

    qkv: Tensor
    heads: Heads
    rows: int

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each (rows, heads, length, width); views."""
        heads = self.heads
        query, key, value = _batched(self.qkv, self.rows).split([heads.query, heads.key, heads.key], dim=1)
        return query, key, value

    def grouped(self, x: Tensor) -> Tensor:
        """(rows, query heads, length, width) → (rows · key heads, group · length, width): who shares a key."""
        return x.reshape(self.rows * self.heads.key, -1, self.heads.width)

    def ungrouped(self, x: Tensor) -> Tensor:
        """The way back."""
        return x.view(self.rows, self.heads.query, -1, self.heads.width)


def _batched(x: Tensor, rows: int) -> Tensor:
    """(rows · length, heads, width) → (rows, heads, length, width), a view."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2)


class _Products:
    """Attention as plain batched products; scores in float32, the rest in the inputs' numbers.

    For short rows in bfloat16 several times quicker than the CPU's flash attention going backward.
    """

    @staticmethod
    def forward(run: _Run, out: Tensor) -> Tensor:
        query, key, value = run.parts
        length = query.shape[2]
        scaled = run.grouped(query).float() * run.heads.scale
        scores = torch.bmm(scaled, key.flatten(0, 1).float().transpose(1, 2))
        future = torch.ones(length, length, dtype=torch.bool).triu_(1)
        scores.view(-1, length, length).masked_fill_(future, -torch.inf)
        weights = torch.softmax(scores, -1).to(query.dtype)
        _batched(out, run.rows).copy_(run.ungrouped(torch.bmm(weights, value.flatten(0, 1))))
        return weights

    @staticmethod
    def backward(run: _Run, _out: Tensor, weights: Tensor, dout: Tensor, gradients: _Run) -> None:
        query, key, value = run.parts
        grouped = run.grouped(_batched(dout, run.rows))
        dweights = torch.bmm(grouped, value.flatten(0, 1).transpose(1, 2))
        dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # noqa: SLF001
        dscores.mul_(run.heads.scale)
        dquery, dkey, dvalue = gradients.parts
        dquery.copy_(run.ungrouped(torch.bmm(dscores, key.flatten(0, 1))))
        dkey.copy_(torch.bmm(dscores.transpose(1, 2), run.grouped(query)).view_as(dkey))
        dvalue.copy_(torch.bmm(weights.transpose(1, 2), grouped).view_as(dvalue))


class _Flash:
    """The CPU's flash attention: for long rows, whose weights would fill the memory."""

    @staticmethod
    def forward(run: _Run, out: Tensor) -> Tensor:
        here, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            *run.parts, 0.0, True, scale=run.heads.scale
        )
        _batched(out, run.rows).copy_(here)
        kept: Tensor = logsumexp
        return kept

    @staticmethod
    def backward(run: _Run, out: Tensor, logsumexp: Tensor, dout: Tensor, gradients: _Run) -> None:
        made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
            _batched(dout, run.rows), *run.parts, _batched(out, run.rows), logsumexp, 0.0, True,
            scale=run.heads.scale,
        )  # fmt: skip
        for part, gradient in zip(gradients.parts, made, strict=True):
            part.copy_(gradient)
