"""Causal attention on a CPU over rows that stand behind one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

from trainer.worker.segments import Segments, Stretch

SHORT: Final = 512
"""Up to this many tokens a row's attention weights are kept whole on a CPU."""


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


class RowByRow(Function):
    """Attention on a CPU, once for each run of rows of one length, on slices: nothing is padded."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads, segments: Segments) -> Tensor:
        """See `attend`."""
        out = qkv.new_empty(qkv.shape[0], heads.query, heads.width)
        kept = []
        for stretch, run in _runs_of(qkv, heads, segments):
            result = qkv.new_empty(run.qkv.shape[0], heads.query, heads.width)
            kept.append(_kernel(segments).forward(run, result))
            out[stretch.tokens] = _flat(result, stretch)
        ctx.heads, ctx.segments = heads, segments
        ctx.save_for_backward(qkv, out, *kept)
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        """The gradient of q, k and v; what is shared gets its rows' gradients added up."""
        qkv, out, *kept = ctx.saved_tensors
        heads, segments = ctx.heads, ctx.segments
        dqkv, dout = torch.empty_like(qkv), dout.view_as(out)
        dshared = dqkv.new_zeros(segments.shared, 2 * heads.key, heads.width, dtype=torch.float32)
        for (stretch, run), saved in zip(_runs_of(qkv, heads, segments), kept, strict=True):
            gradients = _Run(
                torch.empty_like(run.qkv), heads, run.rows, dshared if run.shared is not None else None
            )
            wanted = _rectangle(dout, stretch, padding=0.0)
            _kernel(segments).backward(run, _rectangle(out, stretch), saved, wanted, gradients)
            dqkv[stretch.tokens] = _flat(gradients.qkv, stretch)
        dqkv[: segments.shared, heads.query :] += dshared
        return dqkv, None, None


def _rectangle(x: Tensor, stretch: Stretch, *, padding: float | None = None) -> Tensor:
    """A stretch of (tokens, …) as (rows · longest, …); padding holds other tokens, or the value given."""
    here = x[stretch.tokens]
    if stretch.index is None or stretch.inverse is None:
        return here
    if padding is None:
        return here.index_select(0, stretch.index)
    return here.new_full((len(stretch.index), *here.shape[1:]), padding).index_copy_(0, stretch.inverse, here)


def _flat(x: Tensor, stretch: Stretch) -> Tensor:
    """The way back."""
    return x if stretch.inverse is None else x.index_select(0, stretch.inverse)


@dataclass(frozen=True)
class _Run:
    """Rows of one length: `qkv` is (rows · length, all heads, width); `shared` k and v in front, (tokens, …)."""

    qkv: Tensor
    heads: Heads
    rows: int
    shared: Tensor | None

    @property
    def shared_tokens(self) -> int:
        return 0 if self.shared is None else self.shared.shape[0]

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each (rows, heads, length, width); views."""
        heads = self.heads
        query, key, value = torch.split(_batched(self.qkv, self.rows), [heads.query, heads.key, heads.key], dim=1)
        return query, key, value

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        """K and v with what is shared in front: (rows · key heads, shared + length, width)."""
        _, key, value = self.parts
        if self.shared is None:
            return key.flatten(0, 1), value.flatten(0, 1)
        fronts = torch.split(_batched(self.shared, 1).expand(self.rows, -1, -1, -1), self.heads.key, dim=1)
        behind, before = (torch.cat(pair, dim=2) for pair in zip(fronts, (key, value), strict=True))
        return behind.flatten(0, 1), before.flatten(0, 1)

    def grouped(self, x: Tensor) -> Tensor:
        """(rows, query heads, length, width) → (rows · key heads, group · length, width): who shares a key."""
        return x.reshape(self.rows * self.heads.key, -1, self.heads.width)

    def ungrouped(self, x: Tensor) -> Tensor:
        """The way back."""
        return x.view(self.rows, self.heads.query, -1, self.heads.width)

    def put_gradients(self, dquery: Tensor, dkey: Tensor, dvalue: Tensor) -> None:
        """Write them where this run's views lead; those of shared tokens are added."""
        query, key, value = self.parts
        query.copy_(self.ungrouped(dquery))
        for number, (own, gradient) in enumerate(((key, dkey), (value, dvalue))):
            whole = gradient.view(self.rows, self.heads.key, *gradient.shape[1:])
            own.copy_(whole[:, :, self.shared_tokens :])
            if self.shared is not None:
                heads = slice(number * self.heads.key, (number + 1) * self.heads.key)
                self.shared[:, heads] += whole[:, :, : self.shared_tokens].float().sum(0).transpose(0, 1)


def _runs_of(qkv: Tensor, heads: Heads, segments: Segments) -> Iterator[tuple[Stretch, _Run]]:
    """What is shared, as a row of its own; then the rows."""
    shared = None
    if segments.shared:
        front = slice(0, segments.shared)
        yield Stretch(front, 1, None, None), _Run(qkv[front], heads, 1, None)
        shared = qkv[front, heads.query :]
    for stretch in segments.runs:
        yield stretch, _Run(_rectangle(qkv, stretch), heads, stretch.rows, shared)


def _kernel(segments: Segments) -> type[_Products] | type[_Flash]:
    return _Products if segments.longest <= SHORT else _Flash


def _batched(x: Tensor, rows: int) -> Tensor:
    """(rows · length, heads, width) → (rows, heads, length, width), a view."""
    return x.view(rows, -1, *x.shape[1:]).transpose(1, 2)


class _Products:
    """Attention as plain batched products; scores in float32, the rest in the inputs' numbers.

    For short rows in bfloat16 several times quicker than the CPU's flash attention going backward.
    """

    @staticmethod
    def forward(run: _Run, out: Tensor) -> Tensor:
        query, key, value = (run.parts[0], *run.seen)
        scaled = run.grouped(query).float() * run.heads.scale
        scores = torch.bmm(scaled, key.float().transpose(1, 2))
        length, seen = query.shape[2], key.shape[1]
        future = torch.full((length, seen), -torch.inf).triu_(1 + seen - length)
        scores.view(-1, length, seen).add_(future)  # several times quicker than filling by a mask
        weights = torch.softmax(scores, -1).to(query.dtype)
        _batched(out, run.rows).copy_(run.ungrouped(torch.bmm(weights, value)))
        return weights

    @staticmethod
    def backward(run: _Run, _out: Tensor, weights: Tensor, dout: Tensor, gradients: _Run) -> None:
        query, key, value = (run.parts[0], *run.seen)
        grouped = run.grouped(_batched(dout, run.rows))
        dweights = torch.bmm(grouped, value.transpose(1, 2))
        dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # noqa: SLF001
        gradients.put_gradients(
            torch.bmm(dscores, key).mul_(run.heads.scale),
            torch.bmm(dscores.transpose(1, 2), run.grouped(query)).mul_(run.heads.scale),
            torch.bmm(weights.transpose(1, 2), grouped),
        )


class _Flash:
    """The CPU's flash attention: for long rows, whose weights would fill the memory. It knows nothing shared."""

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
