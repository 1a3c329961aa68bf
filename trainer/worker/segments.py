"""Where rows stand in a run of tokens without padding.

Rows that begin with the same tokens (a system prompt, a template) may share them: the beginning stands once in
front, every row sees it, and nothing in it depends on what follows. So sharing changes no number, it saves work.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

WASTE: Final = 1.2
"""Rows go through a CPU's attention together where padding makes no more than this of them."""


@dataclass(frozen=True)
class Segments:
    """Where rows begin and end in a run of tokens.

    Attributes:
        lengths: of each row, in order, without what is shared; on the host.
        bounds: int32 [rows + 1] on the device: where each row begins, and where the last one ends.
        shared: tokens in front that every row begins with.
        groups: where groups of neighbours share a beginning each: the groups, with the tokens that each takes up;
            then the rows above are the groups.
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    shared: int = 0
    groups: tuple[tuple[slice, Segments], ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with what is shared."""
        return self.shared + max(self.lengths)

    @cached_property
    def runs(self) -> tuple[Stretch, ...]:
        """Neighbours of like length, which attention takes as one rectangle."""
        return tuple(_stretches(self.lengths, self.shared))


@dataclass(frozen=True)
class Stretch:
    """Neighbouring rows.

    Attributes:
        tokens: where they are.
        rows: how many.
        index: [rows · longest]: the stretch's tokens as a rectangle, any token standing for padding on the right;
            None where all rows have one length.
        inverse: [tokens]: where in that rectangle each token is; None as well.
    """

    tokens: slice
    rows: int
    index: Tensor | None
    inverse: Tensor | None


def _stretches(lengths: Sequence[int], start: int) -> Iterator[Stretch]:
    first = 0
    for end in range(1, len(lengths) + 1):
        part = lengths[first:end]
        wider = lengths[first : end + 1]
        if end == len(lengths) or len(wider) * max(wider) > WASTE * sum(wider):
            yield _stretch(part, start)
            first, start = end, start + sum(part)


def _stretch(lengths: Sequence[int], start: int) -> Stretch:
    tokens = slice(start, start + sum(lengths))
    if len(set(lengths)) == 1:
        return Stretch(tokens, len(lengths), None, None)
    width, starts = max(lengths), itertools.accumulate(lengths, initial=0)
    rows = [
        first + torch.arange(width).clamp_max(length - 1) for first, length in zip(starts, lengths, strict=False)
    ]
    inverse = [row * width + torch.arange(length) for row, length in enumerate(lengths)]
    return Stretch(tokens, len(lengths), torch.cat(rows), torch.cat(inverse))
