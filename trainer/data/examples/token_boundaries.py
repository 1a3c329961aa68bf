"""Where in a text's token ids a character position lies, found without tokenising all that comes before it.

Tokenizers split a text at its special tokens before anything else, so what stands between two of them is tokenised
alone. The ids of a beginning of the text are therefore those of the text up to the last special token in it, and
those of the few characters behind that token, which are the same in nearly every row (`assistant` and a line end).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

Ids = list[int]

CACHED_CHARACTERS: Final = 64
"""Longest stretch behind a special token whose ids are kept from row to row."""


@dataclass(frozen=True)
class SpecialTokenFinder:
    """Finds special tokens in texts.

    Attributes:
        ids: text of a special token → its id. Only tokens that are taken as they stand: no white space around them
            is swallowed, nothing is normalised.
    """

    ids: Mapping[str, int]

    def align(self, text: str, ids: Sequence[int]) -> tuple[SpecialTokenMatch, ...]:
        """The special tokens of a text, in order, with where each stands; none where text and ids do not agree."""
        known = self._known
        found = list(self._pattern.finditer(text)) if known else []
        places = [place for place, id_ in enumerate(ids) if id_ in known]
        if [self.ids[match[0]] for match in found] != [ids[place] for place in places]:
            return ()
        return tuple(
            SpecialTokenMatch(match[0], match.end(), place) for match, place in zip(found, places, strict=True)
        )

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.ids.values())

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))


@dataclass(frozen=True)
class SpecialTokenMatch:
    """A special token in a text: its text, where it ends (in characters), and its index among the ids."""

    token: str
    end: int
    index: int


@dataclass(frozen=True)
class TextPrefix:
    """A beginning of a text: the ids up to `index` are the text's own, then come those of `rest`."""

    index: int
    rest: str

    def ids(self, whole: Ids, ids_of: Mapping[str, Ids]) -> Ids:
        """The ids of the beginning by itself."""
        return whole[: self.index] + ids_of[self.rest]

    def length_in(self, whole: Ids, ids_of: Mapping[str, Ids]) -> int | None:
        """How many ids of the whole text the beginning is; None where a token spans its end."""
        rest = ids_of[self.rest]
        end = self.index + len(rest)
        return end if whole[self.index : end] == rest else None


def text_prefixes(
    text: str, anchors: Sequence[SpecialTokenMatch], positions: Sequence[int]
) -> Iterator[TextPrefix]:
    """The beginning of a text up to each of some positions."""
    ends = [anchor.end for anchor in anchors]
    for position in positions:
        number = bisect_right(ends, position)
        if number == 0:
            yield TextPrefix(0, text[:position])
        else:
            anchor = anchors[number - 1]
            yield TextPrefix(anchor.index, anchor.token + text[anchor.end : position])
