"""How attention on a CPU arranges the heads' vectors of a flattened batch: as rectangles for batched products.

A layer's q, k, v product has for each token `query + 2 * key` vectors of `head_dim` numbers. Attention wants them
by row and head, padded to one length: `[rows * heads, length, head_dim]`. Rows of similar length form one
rectangle, as long as the longest; a shared prefix is a row of its own.

One gather brings the vectors into that order and one brings results (or gradients) back. The indices are computed
once for a batch and used by all layers, forward and backward:

    vectors of tokens             vectors by rectangle
    [tokens, all heads]  gather > [queries of all rectangles | keys of all | values of all]
                        < scatter
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.training.fused.slices import consecutive_slices

MAX_PADDING_RATIO: Final = 1.2
"""Rows form one rectangle while padding makes at most this many times their tokens of them."""

_Indices = NDArray[np.int64]
_Mask = NDArray[np.bool_]

RotaryTables = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary position embedding: each [tokens, 1, head_dim / 2]."""


@dataclass(frozen=True)
class Heads:
    """The heads of an attention layer: grouped-query attention, as in arXiv 2305.13245.

    Attributes:
        query: number of query heads.
        key: number of key heads, and of value heads; divides `query`.
        head_dim: numbers in a head's vector.
        scale: what scores are multiplied with, usually 1 / sqrt(head_dim).
    """

    query: int
    key: int
    head_dim: int
    scale: float

    @property
    def total(self) -> int:
        """Heads of queries, keys and values."""
        return self.query + 2 * self.key

    @property
    def queries_per_key(self) -> int:
        """Query heads that attend to the same key head."""
        return self.query // self.key


@dataclass(frozen=True)
class PrefixGroup:
    """Consecutive rows that share a prefix, which precedes them.

    Attributes:
        start: index of the first token of the prefix, or of the first row where the prefix is empty.
        lengths: tokens of each row, in order, without the prefix.
        prefix_length: tokens of the prefix; 0 where the rows share nothing.
    """

    start: int
    lengths: tuple[int, ...]
    prefix_length: int


@dataclass(frozen=True)
class Rectangle:
    """Rows of similar length in a layout.

    Attributes:
        heads: the heads of each token.
        rows: how many rows.
        length: tokens of the longest row, without the prefix.
        prefix: indices of the prefix's tokens, which each row attends to.
        queries: the rectangle's slice of all queries, which are [rows, query heads, length].
        keys: its slice of all keys, and of all values, which are [rows, key heads, prefix + length].
    """

    heads: Heads
    rows: int
    length: int
    prefix: slice
    queries: slice
    keys: slice

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix."""
        return len(range(self.prefix.start, self.prefix.stop))

    @property
    def key_length(self) -> int:
        """Tokens that the last token of the longest row attends to."""
        return self.prefix_length + self.length

    @cached_property
    def causal_mask(self) -> Tensor:
        """What is added to scores: float32 [queries per key * length, key length], -inf where the key is later.

        Row i of a query block may see the prefix and its own tokens 0 .. i. The block repeats for each query head
        of a key head. Padding needs no mask: it is on the right, so causality hides it from the real tokens.
        """
        mask = torch.full((self.length, self.key_length), -torch.inf).triu_(1 + self.prefix_length)
        return mask.repeat(self.heads.queries_per_key, 1)

    def view_queries(self, queries: Tensor) -> Tensor:
        """Views this rectangle's part: [rows * key heads, queries per key * length, head_dim].

        The query heads of one key head are stacked, so that one product with the key serves all of them.
        """
        return queries[self.queries].view(self.rows * self.heads.key, -1, self.heads.head_dim)

    def view_keys(self, keys: Tensor) -> Tensor:
        """Views this rectangle's part of all keys, or of all values: [rows * key heads, key length, head_dim]."""
        return keys[self.keys].view(self.rows * self.heads.key, -1, self.heads.head_dim)


class AttentionLayout:
    """Index tables between a flattened batch and its rectangles; int64, into [tokens * all heads].

    Args:
        groups: consecutive groups of rows, which cover all tokens.
        heads: the heads of each token.

    Attributes:
        heads: as given.
        rectangles: what attention computes one after another.
        num_queries: queries of all rectangles, padding included.
        num_keys: keys of all rectangles, padding and repeated prefixes included; there are as many values.
        gather: the vector that each query, key and value is.
        scatter: for each vector its place among queries, keys and values. A prefix's keys are there once for each
            row, and once as those of the prefix itself: it is the latter.
        results: for each query head of each token the place of its result among the queries.
        result_gradients: for each query the place of its result in [tokens * query heads].
        padding: which queries are padding.
    """

    def __init__(self, groups: Iterable[PrefixGroup], heads: Heads) -> None:
        parts = [part for group in groups for part in _split_group(group)]
        queries = [_index_vectors(part.tokens, heads, 0, heads.query) for part in parts]
        keys = [_index_vectors(part.visible, heads, heads.query, heads.key) for part in parts]
        is_query = np.concatenate(
            [part.is_token.repeat(heads.query, axis=0).ravel() for part in parts]
        )
        is_own_key = np.concatenate(
            [part.is_own.repeat(heads.key, axis=0).ravel() for part in parts]
        )
        # A token's value heads follow its key heads.
        gather = np.concatenate([*queries, *keys, *(key + heads.key for key in keys)])
        # The inverse of the gather. Without padding and repeated prefixes, each vector occurs in it exactly once.
        places = np.flatnonzero(np.concatenate([is_query, is_own_key, is_own_key]))
        scatter = np.empty_like(places)
        scatter[gather[places]] = places
        # Query vector i of [tokens * all heads] has its result at token * query heads + head.
        query_vectors = gather[: len(is_query)]
        token, head = query_vectors // heads.total, query_vectors % heads.total
        self.heads = heads
        self.num_queries, self.num_keys = len(is_query), len(is_own_key)
        self.gather, self.scatter = torch.from_numpy(gather), torch.from_numpy(scatter)
        self.results = torch.from_numpy(scatter.reshape(-1, heads.total)[:, : heads.query].ravel())
        self.result_gradients = torch.from_numpy(token * heads.query + head)
        self.padding = torch.from_numpy(np.flatnonzero(~is_query))
        slices = zip(
            parts,
            consecutive_slices(map(len, queries)),
            consecutive_slices(map(len, keys)),
            strict=True,
        )
        self.rectangles = tuple(
            Rectangle(
                heads, len(part.tokens), part.tokens.shape[1], part.prefix, query_slice, key_slice
            )
            for part, query_slice, key_slice in slices
        )
        self._rotation: tuple[RotaryTables, RotaryTables] | None = None

    def split_sections(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """Splits gathered vectors, or their gradients, into queries, keys and values: views."""
        return torch.split(vectors, [self.num_queries, self.num_keys, self.num_keys])

    def rotation(self, tables: RotaryTables) -> RotaryTables:
        """Returns the rotary factors of every query and key: float32 [queries + keys, head_dim] each.

        With a vector's halves x = (a, b) and swapped(x) = (b, a), the rotated vector is

            x * first + swapped(x) * second    where first = (cos, cos) and second = (-sin, sin)

        The queries' factors contain `heads.scale`, so that no product scales the scores. Computed in the first
        layer; the other layers have the same tables.
        """
        if self._rotation is None or self._rotation[0] is not tables:
            cos, sin = (table.squeeze(1).float() for table in tables)
            token = self.gather[: self.num_queries + self.num_keys] // self.heads.total
            factors = torch.cat([cos, cos], 1)[token], torch.cat([-sin, sin], 1)[token]
            for factor in factors:
                factor[: self.num_queries] *= self.heads.scale
            self._rotation = tables, factors
        return self._rotation[1]


@dataclass(frozen=True)
class _RectangleTokens:
    """Token indices of a rectangle.

    Attributes:
        tokens: [rows, length]; padding repeats the row's last token.
        visible: what the rows attend to: [rows, prefix + length].
        is_token: which of `tokens` are not padding: [rows, length].
        prefix: indices of the prefix's tokens.
    """

    tokens: _Indices
    visible: _Indices
    is_token: _Mask
    prefix: slice

    @property
    def is_own(self) -> _Mask:
        """Which of `visible` are the row's own tokens: [rows, prefix + length]."""
        return np.pad(self.is_token, ((0, 0), (self.prefix.stop - self.prefix.start, 0)))


def _split_group(group: PrefixGroup) -> Iterator[_RectangleTokens]:
    """Yields the prefix as a row of its own, which sees itself alone, and then the rows in rectangles."""
    prefix = slice(group.start, group.start + group.prefix_length)
    prefix_tokens, start = np.arange(prefix.start, prefix.stop)[None], prefix.stop
    if group.prefix_length:
        is_token = np.ones_like(prefix_tokens, dtype=bool)
        yield _RectangleTokens(
            prefix_tokens, prefix_tokens, is_token, slice(group.start, group.start)
        )
    for run in _similar_lengths(group.lengths):
        lengths = np.array(run)[:, None]
        column = np.arange(max(run))
        # A row starts where the rows before it end; columns past its end repeat its last token.
        tokens = start + np.cumsum(lengths, axis=0) - lengths + np.minimum(column, lengths - 1)
        visible = np.concatenate([prefix_tokens.repeat(len(run), axis=0), tokens], axis=1)
        yield _RectangleTokens(tokens, visible, column < lengths, prefix)
        start += sum(run)


def _similar_lengths(lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cuts rows into runs of neighbours that need little padding; greedy."""
    first = 0
    for end in range(1, len(lengths) + 1):
        extended = lengths[first : end + 1]
        padded_tokens = len(extended) * max(extended)
        if end == len(lengths) or padded_tokens > MAX_PADDING_RATIO * sum(extended):
            yield lengths[first:end]
            first = end


def _index_vectors(tokens: _Indices, heads: Heads, first: int, count: int) -> _Indices:
    """Returns the vectors of `count` heads, from `first` on, of tokens [rows, length]: [rows * count * length]."""
    head = np.arange(first, first + count)[:, None]
    return (tokens[:, None] * heads.total + head).ravel()
