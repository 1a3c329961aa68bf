"""Exact match and token F1 of an answer against the expected one. Imports no torch.

Source: `evaluate-v1.1.py` of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250): both texts in lower case, without
punctuation, without the English articles, their words compared.

Beyond English as in MLQA's script (Lewis et al. 2019, arXiv 1910.07475): punctuation of every script is dropped,
and Han characters are words of their own; here so are kana, since Japanese separates no words either. Canonically
equivalent texts (NFC) are equal. Articles of other languages are words.

One rule is neither's: dropping stops where nothing would be left. SQuAD's script makes the choice "A" an empty
text, which equals any other empty one.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from typing import Final

_PUNCTUATION: Final = frozenset(string.punctuation)
_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_UNSPACED: Final = (
    "\u3041-\u30ff\u31f0-\u31ff"  # kana
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def answer_words(text: str) -> list[str]:
    """Returns the words by which an answer is compared; none only if it is white space."""
    lower = unicodedata.normalize("NFC", text).lower()
    # The ASCII symbols among string.punctuation, such as + and $, are in other categories than P.
    bare = "".join(
        char
        for char in lower
        if char not in _PUNCTUATION and not unicodedata.category(char).startswith("P")
    )
    forms = (_ARTICLES.sub(" ", bare), bare, lower)
    return next((words for form in forms if (words := _WORD.findall(form))), [])


def exact_match(got: str, expected: str) -> float:
    """Returns 1 if both answers have the same words in the same order, else 0."""
    return float(answer_words(got) == answer_words(expected))


def token_f1(got: str, expected: str) -> float:
    """Returns the harmonic mean of precision and recall over the words, whatever their order; 0 to 1."""
    left, right = answer_words(got), answer_words(expected)
    if not left or not right:
        return float(left == right)
    # A word counts as often as it occurs in both: the intersection of multisets.
    common = (Counter(left) & Counter(right)).total()
    # With P = common / len(left) and R = common / len(right), 2 P R / (P + R) is this quotient.
    return 2 * common / (len(left) + len(right))
