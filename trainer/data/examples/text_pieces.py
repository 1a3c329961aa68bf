r"""Tokenises texts in pieces that many texts have in common, so that a piece is tokenised once.

A byte-level tokenizer splits a text into words by a pattern, and merges the bytes of each word alone. Most texts
consist of the same few thousand words, and to look one up takes a fifth of the time of tokenising it.

A text is cut around the added tokens in it, and before a single space between two characters that are no white
space. The ids of the pieces, joined, are those of the text if no step of the tokenizer looks across such a cut:

- **Added tokens** that are matched before the normaliser split the text before anything else: the leftmost one,
  of two that begin there the longer one. None contains a space, swallows one, or asks what is around it.
- **The normaliser** is none or NFC. A space is no part of a composition, and neither decomposes nor moves.
- **The pattern** is GPT-2's or one of `INDEPENDENT_PATTERNS`. In these, white space is the first character of a
  match, or all of it, or, if it is a line end, its last characters. So a match with any other character ends
  before the next space, and one begins there. What a match takes depends on what follows its beginning: none
  looks behind, and `(?!\S)` is asked only after white space, with which no piece ends.
- **Digits**, if they are isolated first, are isolated character by character.
- **The model** is BPE without dropout: the same merges for the same word.

Sources: the pattern of GPT-2's encoder.py; the files tokenizer.json of Llama 3, Qwen 2 and 3, and gpt-oss.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, filterfalse
from typing import TYPE_CHECKING, Any, Final

from trainer.data.examples.token_boundaries import (
    Ids,
    SpecialTokenMatch,
    TokenizedText,
    any_of,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_PIECE_CHARACTERS: Final = 64
"""Longest piece whose ids are cached."""

MAX_CACHED_CHARACTERS: Final = 1 << 19
"""Characters of the pieces of a cache: of words in European languages about 65,000, which take 12 MB."""

_ID_BYTES: Final = array("i").itemsize

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LETTERS: Final = _BEFORE + r"\p{L}+"
_PUNCTUATION: Final = r" ?[^\s\p{L}\p{N}]+"
_WHITE_SPACE: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3: Final = (_CONTRACTIONS, _LETTERS, r"\p{N}{1,3}", _PUNCTUATION + r"[\r\n]*", _WHITE_SPACE)
_QWEN: Final = (_CONTRACTIONS, _LETTERS, r"\p{N}", _PUNCTUATION + r"[\r\n]*", _WHITE_SPACE)
_GPT_OSS: Final = (
    f"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?",
    f"{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?",
    r"\p{N}{1,3}",
    _PUNCTUATION + r"[\r\n/]*",
    _WHITE_SPACE,
)

INDEPENDENT_PATTERNS: Final = frozenset(map("|".join, (_LLAMA_3, _QWEN, _GPT_OSS)))
"""Patterns of `Split` for which the rule holds."""

_DIGITS: Final = {"type": "Digits", "individual_digits": True}

# Characters that no version of Unicode calls white space: ASCII, scripts before U+1680, those of East Asia.
_OTHER: Final = "!-~\u00a1-\u167f\u3001-\ud7ff"
# The space comes first, because to look for one character is the fastest way to begin a match.
_CUT: Final = re.compile(f" (?=[{_OTHER}])(?<=[{_OTHER}] )")


def cut_text(text: str) -> list[str]:
    """Returns a text in pieces, between each two of which it has a space."""
    return _CUT.split(text)


def has_independent_words(backend: Tokenizer) -> bool:
    """Returns whether the ids of the pieces of any text, joined, are those of the text."""
    return (
        type(backend.model).__name__ == "BPE"
        and not backend.model.dropout
        and (backend.normalizer is None or _state(backend.normalizer) == {"type": "NFC"})
        and _has_known_pattern(backend)
        and not any(map(_reads_over_spaces, backend.get_added_tokens_decoder().values()))
    )


def _has_known_pattern(backend: Tokenizer) -> bool:
    if backend.pre_tokenizer is None:
        return False
    state = _state(backend.pre_tokenizer)
    steps = [step for step in state.get("pretokenizers", [state]) if step != _DIGITS]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if steps[-1]["use_regex"] or len(steps) != 2:
        return bool(steps[-1]["use_regex"]) and len(steps) == 1
    first = steps[0]
    is_pattern = first["type"] == "Split" and first["pattern"].get("Regex") in INDEPENDENT_PATTERNS
    return is_pattern and first["behavior"] == "Isolated" and not first["invert"]


def _reads_over_spaces(token: Any) -> bool:
    return " " in token.content or token.lstrip or token.rstrip or token.single_word


def _state(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state


class PieceCache:
    """The ids of pieces, of which it keeps the short ones.

    Args:
        backend: tokenises a piece.
        before: text before each piece, which is tokenised with it.

    Attributes:
        ids: piece → its ids: int32 [tokens].
        characters: number of characters of the pieces that are kept.
    """

    def __init__(self, backend: Tokenizer, before: str) -> None:
        self._backend = backend
        self._before = before
        self.ids: dict[str, bytes] = {}
        self.characters = 0

    def add(self, pieces: Iterable[str]) -> list[str]:
        """Tokenises those of the pieces that have no ids yet, on all cores, and returns them."""
        new = sorted(set(filterfalse(self.ids.__contains__, pieces)))
        texts = [f"{self._before}{piece}" for piece in new]
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        for piece, encoding in zip(new, encoded, strict=True):
            self.ids[piece] = array("i", encoding.ids).tobytes()
        return new

    def forget(self, new: Iterable[str]) -> None:
        """Keeps the short ones of the new pieces; and nothing, once there is too much."""
        for piece in new:
            if len(piece) > MAX_PIECE_CHARACTERS:
                del self.ids[piece]
            else:
                self.characters += len(piece)
        if self.characters > MAX_CACHED_CHARACTERS:
            self.ids.clear()
            self.characters = 0


class TextTokenizer:
    """Tokenises texts: in pieces, of which it caches the short ones, if the tokenizer admits that; else entire.

    Args:
        backend: a tokenizer, which nobody changes from now on.

    Attributes:
        cuts: whether texts are tokenised in pieces.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.cuts = has_independent_words(backend)
        added = backend.get_added_tokens_decoder().values()
        pattern = any_of(token.content for token in added if not token.normalized).pattern
        self._added = re.compile(f"({pattern})")
        self._starts, self._words = PieceCache(backend, ""), PieceCache(backend, " ")

    @property
    def cached_characters(self) -> int:
        """Number of characters of the pieces whose ids are cached."""
        return self._starts.characters + self._words.characters

    def ids_of(self, texts: Sequence[str]) -> list[Ids]:
        """Returns the ids of texts as `tokenize` finds them."""
        return [tokenized.ids for tokenized in self.tokenize(texts)]

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenises each text separately, on all cores; no special tokens are added."""
        if not self.cuts:
            encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [TokenizedText(array("i", encoding.ids), None) for encoding in encoded]
        # Of each text the parts between added tokens, and these themselves; of each part the pieces.
        split = list(map(self._added.split, texts))
        cut = [list(map(cut_text, parts)) for parts in split]
        starts, words = self._starts, self._words
        new_starts = starts.add(pieces[0] for parts in cut for pieces in parts)
        new_words = words.add(chain.from_iterable(pieces[1:] for parts in cut for pieces in parts))
        tokenized = list(map(self._join, split, cut))
        starts.forget(new_starts)
        words.forget(new_words)
        return tokenized

    def _join(self, parts: Sequence[str], cut: Iterable[list[str]]) -> TokenizedText:
        """Joins the ids of a text's parts; those at odd indices are added tokens."""
        starts, words = self._starts.ids, self._words.ids
        ids = [starts[start] + b"".join(map(words.__getitem__, others)) for start, *others in cut]
        ends, sizes = list(accumulate(map(len, parts))), list(accumulate(map(len, ids)))
        # An added token's index is the number of ids of the parts before it.
        indices = (size // _ID_BYTES for size in sizes[:-1:2])
        matches = zip(parts[1::2], ends[1::2], indices, strict=True)
        return TokenizedText(
            array("i", b"".join(ids)), tuple(SpecialTokenMatch(*match) for match in matches)
        )
