"""How attention on a CPU takes tokens that stand behind one another: as rectangles, head by head.

Rows of like length are one rectangle, as wide as the longest; what they share in front is a row of its own. One
gather brings the heads' vectors into that shape, and one brings the results back: where each comes from is worked
out once for a pass, and used by all its layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WASTE: Final = 1.2
"""Rows go through attention together where padding makes no more than this of them."""

_Indices = NDArray[np.int64]
_Mask = NDArray[np.bool_]

RotaryTables = tuple[Tensor, Tensor]
"""Cosines and sines of rotary position embedding: (tokens, 1, half a head's width)."""


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

    @property
    def group(self) -> int:
        """Query heads that see the same key."""
        return self.query // self.key


@dataclass(frozen=True)
class Group:
    """Rows that may share a beginning.

    Attributes:
        start: where they begin.
        lengths: of each, in order, without what is shared.
        shared: tokens in front that every one of them sees.
    """

    start: int
    lengths: Sequence[int]
    shared: int


@dataclass(frozen=True)
class Rectangle:
    """Rows of like length in a layout.

    Attributes:
        heads: of each token.
        rows: how many.
        length: tokens of the longest of them.
        front: the tokens in front that each of them sees besides.
        queries: where its queries are among all: [rows, query heads, length].
        keys: where its keys are among all, and its values among those: [rows, key heads, front + length].
    """

    heads: Heads
    rows: int
    length: int
    front: slice
    queries: slice
    keys: slice

    @property
    def shared(self) -> int:
        """How many tokens stand in front."""
        return len(range(self.front.start, self.front.stop))

    @property
    def seen(self) -> int:
        """How many tokens the last one sees."""
        return self.shared + self.length

    @cached_property
    def future(self) -> Tensor:
        """What is added to scores, float32 [group · length, seen]: -∞ where a key comes after the query."""
        future = torch.full((self.length, self.seen), -torch.inf).triu_(1 + self.shared)
        return future.repeat(self.heads.group, 1)

    def of_queries(self, section: Tensor) -> Tensor:
        """This rectangle's part of all queries, a view: (rows · key heads, group · length, width)."""
        return section[self.queries].view(self.rows * self.heads.key, -1, self.heads.width)

    def of_keys(self, section: Tensor) -> Tensor:
        """This rectangle's part of all keys, or of all values, a view: (rows · key heads, seen, width)."""
        return section[self.keys].view(self.rows * self.heads.key, -1, self.heads.width)


class Layout:
    """Where heads' vectors go; indices are int64, into tokens times heads.

    Args:
        groups: neighbours, which cover all tokens.
        heads: how a token's vectors are cut.

    Attributes:
        heads: as given.
        rectangles: what attention takes one after another.
        queries: how many there are, padding included.
        keys: how many there are, and as many values.
        gather: for each of those which head of which token it is, of (tokens, all heads).
        scatter: the way back, for each head of each token; of a key that several rows see, the one in front.
        results: for each query head of each token where its result is among the queries.
        grouped: for each query the place of its result, of (tokens, query heads).
        padding: which queries stand for none.
    """

    def __init__(self, groups: Iterable[Group], heads: Heads) -> None:
        parts = [part for group in groups for part in _parts(group)]
        queries = [_spread(part.tokens, heads, 0, heads.query) for part in parts]
        keys = [_spread(part.seen, heads, heads.query, heads.key) for part in parts]
        real = np.concatenate([part.real.repeat(heads.query, axis=0).ravel() for part in parts])
        own = np.concatenate([part.own.repeat(heads.key, axis=0).ravel() for part in parts])
        gather = np.concatenate([*queries, *keys, *(key + heads.key for key in keys)])
        scatter = _inverse(gather, np.concatenate([real, own, own]))
        asked = gather[: len(real)]
        self.heads = heads
        self.queries, self.keys = len(real), len(own)
        self.gather, self.scatter = torch.from_numpy(gather), torch.from_numpy(scatter)
        self.results = torch.from_numpy(scatter.reshape(-1, heads.total)[:, : heads.query].ravel())
        self.grouped = torch.from_numpy(asked // heads.total * heads.query + asked % heads.total)
        self.padding = torch.from_numpy(np.flatnonzero(~real))
        places = zip(parts, _slices(map(len, queries)), _slices(map(len, keys)), strict=True)
        self.rectangles = tuple(
            Rectangle(heads, len(part.tokens), part.tokens.shape[1], part.front, asking, seen)
            for part, asking, seen in places
        )
        self._rotation: tuple[RotaryTables, RotaryTables] | None = None

    def sections(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of what `gather` brings together, or their gradients: views."""
        return torch.split(vectors, [self.queries, self.keys, self.keys])

    def rotation(self, tables: RotaryTables) -> RotaryTables:
        """Factors of every query and key, float32 (queries + keys, width); queries' times `heads.scale`.

        With the halves of a vector x as (a, b) and those of its swapped one as (b, a), the rotated one is
        x · first + swapped · second.
        """
        if self._rotation is None or self._rotation[0] is not tables:
            cos, sin = (table.squeeze(1).float() for table in tables)
            token = self.gather[: self.queries + self.keys] // self.heads.total
            factors = torch.cat([cos, cos], 1)[token], torch.cat([-sin, sin], 1)[token]
            for factor in factors:
                factor[: self.queries] *= self.heads.scale
            self._rotation = tables, factors
        return self._rotation[1]


@dataclass(frozen=True)
class _Part:
    """Rows of a rectangle.

    Attributes:
        tokens: which they are; padding stands for the row's last one: (rows, length).
        seen: which they see: (rows, front + length).
        real: which are no padding: (rows, length).
        front: which they share.
    """

    tokens: _Indices
    seen: _Indices
    real: _Mask
    front: slice

    @property
    def own(self) -> _Mask:
        """Which of the tokens seen belong to the row itself."""
        return np.pad(self.real, ((0, 0), (self.front.stop - self.front.start, 0)))


def _parts(group: Group) -> Iterator[_Part]:
    """What is shared, as a row of its own; then the rows."""
    front = slice(group.start, group.start + group.shared)
    shared, start = np.arange(front.start, front.stop)[None], front.stop
    if group.shared:
        yield _Part(shared, shared, np.ones_like(shared, dtype=bool), slice(group.start, group.start))
    for run in _alike(group.lengths):
        sizes = np.array(run)[:, None]
        column = np.arange(max(run))
        tokens = start + np.cumsum(sizes, axis=0) - sizes + np.minimum(column, sizes - 1)
        seen = np.concatenate([shared.repeat(len(run), axis=0), tokens], axis=1)
        yield _Part(tokens, seen, column < sizes, front)
        start += sum(run)


def _alike(lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut rows into neighbours of like length."""
    first = 0
    for end in range(1, len(lengths) + 1):
        wider = lengths[first : end + 1]
        if end == len(lengths) or len(wider) * max(wider) > WASTE * sum(wider):
            yield lengths[first:end]
            first = end


def _spread(tokens: _Indices, heads: Heads, first: int, count: int) -> _Indices:
    """Head by head: (rows, length) → [rows · count · length]."""
    head = np.arange(first, first + count)[:, None]
    return (tokens[:, None] * heads.total + head).ravel()


def _inverse(places: _Indices, real: _Mask) -> _Indices:
    """For each place where in `places` it stands; only where it is real, and there once."""
    first = np.flatnonzero(real)
    inverse = np.empty_like(first)
    inverse[places[first]] = first
    return inverse


def _slices(sizes: Iterable[int]) -> list[slice]:
    return [slice(start, end) for start, end in itertools.pairwise(itertools.accumulate(sizes, initial=0))]
