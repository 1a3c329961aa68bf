"""Causal attention on a CPU, one rectangle of similarly long rows after another.

For each row and head, with queries Q (scaled), keys K and values V:

    forward    S = Q K^T + mask      P = softmax(S)      O = P V
    backward   dV = P^T dO           dP = dO V^T         dS = P * (dP - rowsum(P * dP))
               dQ = dS K             dK = dS^T Q

Two kernels compute it with the same products. `_BatchAttention` takes all rows of a rectangle at once: for short
rows. `_BlockAttention` takes a block of a row's queries at a time, with the keys that the block sees: half of a
long row's P is masked, and blocks leave most of that half out. P is kept for the backward pass, except that of a
row's late queries, which would fill the memory: it is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

from trainer.training.fused.attention_layout import AttentionLayout, Heads, Rectangle, RotaryTables
from trainer.training.fused.segments import Segments

MAX_BATCH_TOKENS: Final = 512
"""Up to this many tokens of the longest row, all rows of a rectangle are computed at once."""

MAX_KEPT_TOKENS: Final = 3072
"""Attention weights of a row's queries up to this place are kept for the backward pass."""

QUERY_BLOCK: Final = 128
"""Consecutive queries of a long row that are computed at once."""

MAX_KEY_COUNTS: Final = 32
"""Different numbers of keys that the blocks of a row have: six products for each, and oneDNN keeps 256 kernels."""


class RowAttention(Function):
    """Attention on a CPU, with rotary position embedding; see `attention_layout` for the arrangement."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: Heads, segments: Segments, tables: RotaryTables
    ) -> Tensor:
        """Computes attention as `attend` describes it: [tokens, query heads * head_dim]."""
        layout = segments.attention_layout(heads)
        kernel = _BatchAttention if segments.max_seqlen <= MAX_BATCH_TOKENS else _BlockAttention
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
        dqkv = gradients.index_select(0, layout.scatter).view(
            grad_output.shape[0], heads.total, heads.head_dim
        )
        # The scatter brought the prefix the gradient of its own rectangle; add those of the rows that see it.
        for rectangle in layout.rectangles:
            if rectangle.prefix_length:
                dqkv[rectangle.prefix, heads.query :] += _sum_prefix_gradients(
                    layout, rectangle, gradients
                )
        return dqkv, None, None, None


def _rotate(x: Tensor, rotation: RotaryTables, *, backward: bool = False) -> Tensor:
    """Applies rotary factors to x, float32 [vectors, head_dim], in place; see `AttentionLayout.rotation`.

    A rotation is orthogonal: the gradient is rotated by the opposite angle, so the sine changes its sign.
    """
    half = x.shape[1] // 2
    swapped = torch.cat([x[:, half:], x[:, :half]], 1)
    return x.mul_(rotation[0]).addcmul_(swapped, rotation[1], value=-1 if backward else 1)


def _sum_prefix_gradients(
    layout: AttentionLayout, rectangle: Rectangle, gradients: Tensor
) -> Tensor:
    """Sums the gradients of the prefix's keys and values over rows: float32 [prefix, 2 * key heads, head_dim]."""
    _, *keys_and_values = layout.split_sections(gradients)
    shape = (rectangle.rows, layout.heads.key, rectangle.key_length, layout.heads.head_dim)
    parts = (
        rectangle.view_keys(section).view(shape)[:, :, : rectangle.prefix_length]
        for section in keys_and_values
    )
    return torch.cat([part.sum(0, dtype=torch.float32) for part in parts]).transpose(0, 1)


class _BatchAttention:
    """Attention as plain batched matrix products: scores in float32, the rest in the inputs' dtype."""

    @staticmethod
    def forward(
        layout: AttentionLayout, vectors: Tensor, exact: Tensor, output: Tensor
    ) -> list[Tensor]:
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
        layout: AttentionLayout,
        vectors: Tensor,
        saved: list[Tensor],
        doutput: Tensor,
        gradients: Tensor,
    ) -> None:
        """Writes dQ, dK and dV of each rectangle to `gradients`; formulas in the module."""
        sections, gradient_sections = (
            layout.split_sections(vectors),
            layout.split_sections(gradients),
        )
        for rectangle, weights in zip(layout.rectangles, saved, strict=True):
            query, key, value = _view_sections(rectangle, sections)
            dquery, dkey, dvalue = _view_sections(rectangle, gradient_sections)
            dout = rectangle.view_queries(doutput)
            dweights = torch.bmm(dout, value.transpose(1, 2))
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # noqa: SLF001
            torch.bmm(dscores, key, out=dquery)
            torch.bmm(dscores.transpose(1, 2), query, out=dkey)
            torch.bmm(weights.transpose(1, 2), dout, out=dvalue)


class _BlockAttention:
    """Attention of one key head for a block of queries at a time.

    What is computed again must be the same P. Then scores are products of the rounded queries and keys, since the
    exact ones are not kept.
    """

    @staticmethod
    def forward(
        layout: AttentionLayout, vectors: Tensor, exact: Tensor, output: Tensor
    ) -> list[Tensor]:
        """Writes O to `output`; returns the P of each block that keeps it."""
        *rounded_parts, values = layout.split_sections(vectors)
        exact_parts = torch.split(exact, [layout.num_queries, layout.num_keys])
        saved, scores, mask = [], _score_buffer(layout), _causal_mask(layout)
        for block in _query_blocks(layout):
            queries, keys = exact_parts if block.saves_weights else rounded_parts
            weights = block.weights(
                block.copy_queries(queries), block.view_keys(keys), scores, mask
            ).to(values.dtype, copy=True)
            block.write_queries(output, weights @ block.view_keys(values))
            if block.saves_weights:
                saved.append(weights)
        return saved

    @staticmethod
    def backward(
        layout: AttentionLayout,
        vectors: Tensor,
        saved: list[Tensor],
        doutput: Tensor,
        gradients: Tensor,
    ) -> None:
        """Writes dQ, dK and dV of each rectangle to `gradients`; formulas in the module."""
        queries, keys, values = layout.split_sections(vectors)
        dqueries, *dkeys_and_dvalues = layout.split_sections(gradients)
        # Every block adds to the gradients of the keys that it sees: in float32, as there are several.
        sums = [torch.zeros_like(section, dtype=torch.float32) for section in dkeys_and_dvalues]
        saved_weights, scores, mask = iter(saved), _score_buffer(layout), _causal_mask(layout)
        for block in _query_blocks(layout):
            query, key, dout = (
                block.copy_queries(queries),
                block.view_keys(keys),
                block.copy_queries(doutput),
            )
            weights = (
                next(saved_weights)
                if block.saves_weights
                else block.weights(query, key, scores, mask).to(values.dtype)
            )
            dweights = dout @ block.view_keys(values).t()
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # noqa: SLF001
            block.write_queries(dqueries, dscores @ key)
            for target, left, right in zip(sums, (dscores, weights), (query, dout), strict=True):
                block.view_keys(target).add_(left.t() @ right)
        for section, total in zip(dkeys_and_dvalues, sums, strict=True):
            section.copy_(total)


@dataclass(frozen=True)
class _QueryBlock:
    """Consecutive queries of one row, of all query heads that attend to one key head.

    Attributes:
        rectangle: what the row is in.
        key_head: index of row and key head: among [rows * key heads].
        tokens: the queries' places in the row, without the prefix.
        end: place after the last token whose key takes part; at least `tokens.stop`.
    """

    rectangle: Rectangle
    key_head: int
    tokens: slice
    end: int

    @property
    def saves_weights(self) -> bool:
        """Whether P is saved for the backward pass."""
        end: int = self.tokens.stop
        return self.rectangle.prefix_length + end <= MAX_KEPT_TOKENS

    def copy_queries(self, queries: Tensor) -> Tensor:
        """Copies this block's part of all queries, or of their gradients: [query heads * tokens, head_dim]."""
        return self._by_head(queries).flatten(0, 1)

    def write_queries(self, queries: Tensor, values: Tensor) -> None:
        """Writes what `copy_queries` reads."""
        target = self._by_head(queries)
        target.copy_(values.view_as(target))

    def view_keys(self, keys: Tensor) -> Tensor:
        """Views the keys, or values, that take part: [prefix + tokens before `end`, head_dim]."""
        return self.rectangle.view_keys(keys)[
            self.key_head, : self.rectangle.prefix_length + self.end
        ]

    def weights(self, query: Tensor, key: Tensor, buffer: Tensor, mask: Tensor) -> Tensor:
        """Computes P in the buffer: float32 [query heads * tokens, keys]; `mask` as of `_causal_mask`."""
        scores = torch.mm(
            query.float(), key.float().t(), out=buffer[: len(query) * len(key)].view(-1, len(key))
        )
        # From the block's first token on, keys may be later than a query; all others are earlier.
        count, later = self.tokens.stop - self.tokens.start, self.end - self.tokens.start
        own = scores.view(-1, count, len(key))[..., -later:]
        own += mask[:count, :later]
        return torch.softmax(scores, -1, out=scores)

    def _by_head(self, queries: Tensor) -> Tensor:
        """Views this block's part: [query heads, tokens, head_dim]."""
        rectangle = self.rectangle
        row = rectangle.view_queries(queries)[self.key_head].view(
            -1, rectangle.length, rectangle.heads.head_dim
        )
        return row[:, self.tokens]


def _query_blocks(layout: AttentionLayout) -> Iterator[_QueryBlock]:
    for rectangle in layout.rectangles:
        length = rectangle.length
        step = _key_step(length)
        for key_head in range(rectangle.rows * rectangle.heads.key):
            for start in range(0, length, QUERY_BLOCK):
                tokens = slice(start, min(start + QUERY_BLOCK, length))
                yield _QueryBlock(
                    rectangle, key_head, tokens, min(math.ceil(tokens.stop / step) * step, length)
                )


def _key_step(length: int) -> int:
    """Returns what the end of a block's keys is rounded up to, so that there are few different numbers of keys."""
    return QUERY_BLOCK * math.ceil(length / (QUERY_BLOCK * MAX_KEY_COUNTS))


def _causal_mask(layout: AttentionLayout) -> Tensor:
    """Returns what is added to scores from a block's first token on: [queries, keys], -inf for later keys."""
    longest = max(part.length for part in layout.rectangles)
    return torch.full((QUERY_BLOCK, _key_step(longest)), -torch.inf).triu_(1)


def _score_buffer(layout: AttentionLayout) -> Tensor:
    """Allocates the scores of the largest block, float32: once for all blocks, so that its pages stay mapped."""
    heads = layout.heads.queries_per_key
    return torch.empty(
        max(min(part.length, QUERY_BLOCK) * heads * part.key_length for part in layout.rectangles)
    )


def _view_sections(
    rectangle: Rectangle, sections: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Views a rectangle's part of queries, keys and values, or of their gradients."""
    queries, keys, values = sections
    return rectangle.view_queries(queries), rectangle.view_keys(keys), rectangle.view_keys(values)
