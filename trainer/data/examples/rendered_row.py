"""The two steps from a rendered row to masked token ids: each names texts to tokenise and continues with the ids.

Tokenizers are fast on many texts at once, so the texts of many rows are collected before each step continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trainer.data.examples.token_boundaries import Ids, TokenizedText
from trainer.data.rows import Row
from trainer.spec import RowPart

TokenSpan = tuple[int, int]
"""First index, and index after the last one, among token ids."""


class MaskedTokens(NamedTuple):
    """Token ids and the spans of them that enter the loss."""

    ids: Ids
    spans: tuple[TokenSpan, ...]

    @classmethod
    def train_on_all(cls, ids: Ids) -> MaskedTokens:
        """Returns the ids with one span over all of them."""
        return cls(ids, ((0, len(ids)),))


class TokenizedRow(NamedTuple):
    """A row whose texts are tokenised.

    Attributes:
        boundary_texts: further texts to tokenise, to find the boundaries of the spans; short, and often the same
            for many rows.
        apply_masks: takes the ids of these texts by text and returns the masked tokens of each example.
    """

    boundary_texts: tuple[str, ...]
    apply_masks: Callable[[Mapping[str, Ids]], tuple[MaskedTokens, ...]]

    @classmethod
    def finished(cls, *examples: MaskedTokens) -> TokenizedRow:
        """Returns a row that needs no further texts."""
        return cls((), lambda _: examples)


@dataclass(frozen=True)
class RenderedRow:
    """A row as texts.

    Attributes:
        row: the row.
        texts: what to tokenise.
        continue_with: takes the tokenised texts, in their order.
        unrendered: parts of the row that its texts lack.
    """

    row: Row
    texts: tuple[str, ...]
    continue_with: Callable[[list[TokenizedText]], TokenizedRow]
    unrendered: frozenset[RowPart] = frozenset()
