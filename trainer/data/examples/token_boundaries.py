"""Finds the token index of a character position without tokenising the text before it once more.

A tokenizer splits a text at its special tokens before anything else, and tokenises each part between two of them
alone. So the ids of a prefix of the text are the text's own ids up to the last special token in the prefix,
followed by the ids of that token and the few characters after it. These few characters are the same in nearly
every row (`<|im_start|>assistant` and a line end), so their ids are cached.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress, count
from typing import Final, NamedTuple, TypeAlias

Ids: TypeAlias = "array[int]"
"""int32 [tokens]: token ids."""

CACHED_CHARACTERS: Final = 64
"""Longest text from a special token on whose ids are cached."""


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern that matches any of some texts, the longest one first."""
    # An alternation takes its first branch that matches, so of two tokens with a common beginning the longer one
    # must come first. Without tokens nothing must match, not even the empty text.
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class SpecialTokenFinder:
    """Finds special tokens in texts.

    Args:
        ids: text of a special token → its id; only tokens that are matched literally, without swallowing white
            space and without normalisation.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = ids
        self._known = frozenset(ids.values())
        self._pattern = any_of(ids)

    def align(self, text: str, ids: Sequence[int]) -> tuple[SpecialTokenMatch, ...]:
        """Returns the special tokens of a text in order; none if the text and its ids do not agree on them."""
        matches = list(self._pattern.finditer(text))
        indices = list(compress(count(), map(self._known.__contains__, ids)))
        # If text and ids have different special tokens, no index can be assigned to a position.
        if [self.ids[match[0]] for match in matches] != [ids[index] for index in indices]:
            return ()
        return tuple(
            SpecialTokenMatch(match[0], match.end(), index)
            for match, index in zip(matches, indices, strict=True)
        )


class SpecialTokenMatch(NamedTuple):
    """A special token in a text.

    Attributes:
        token: its text.
        end: where it ends, in characters.
        token_index: its index among the token ids of the text.
    """

    token: str
    end: int
    token_index: int


class TokenizedText(NamedTuple):
    """A text as token ids.

    Attributes:
        ids: its token ids.
        special_tokens: the tokens that split it before all others, in order; None if `SpecialTokenFinder` must
            look for them.
    """

    ids: Ids
    special_tokens: tuple[SpecialTokenMatch, ...] | None


class TextPrefix(NamedTuple):
    """A prefix of a tokenised text, as a number of ids of the text and a rest to tokenise.

    Attributes:
        token_index: the first `token_index` ids of the text belong to the prefix.
        rest: the prefix from there on: a special token and the characters after it.
    """

    token_index: int
    rest: str

    def ids(self, text_ids: Ids, ids_of: Mapping[str, Ids]) -> Ids:
        """Returns the ids that the prefix has when it is tokenised alone."""
        return text_ids[: self.token_index] + ids_of[self.rest]

    def length_in(self, text_ids: Ids, ids_of: Mapping[str, Ids]) -> int | None:
        """Returns how many ids of the text the prefix has; None if a token of the text crosses its end."""
        rest = ids_of[self.rest]
        end = self.token_index + len(rest)
        return end if text_ids[self.token_index : end] == rest else None


def text_prefixes(
    text: str, special_tokens: Sequence[SpecialTokenMatch], positions: Sequence[int]
) -> Iterator[TextPrefix]:
    """Yields the prefix of a text up to each character position."""
    ends = [special_token.end for special_token in special_tokens]
    for position in positions:
        number = bisect_right(ends, position)
        if number == 0:
            yield TextPrefix(0, text[:position])
        else:
            last = special_tokens[number - 1]
            yield TextPrefix(last.token_index, last.token + text[last.end : position])
