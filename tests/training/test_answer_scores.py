"""Exact match and token F1: SQuAD's formulas, and what they say outside English."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.answer_scores import answer_words, exact_match, token_f1


# evaluate-v1.1.py of SQuAD, in its own words: the formula that papers report.
def normalized_by_squad(text: str) -> str:
    text = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_by_squad(got: str, expected: str) -> float:
    left, right = normalized_by_squad(got).split(), normalized_by_squad(expected).split()
    same = sum((Counter(left) & Counter(right)).values())
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(left), 1.0 * same / len(right)
    return (2 * precision * recall) / (precision + recall)


WORDS = st.lists(
    st.sampled_from(
        ["The", "a", "an", "cat", "CAT!", "sat,", "on", "mat.", "u.s.a.", "co-op", "$5", "(the)"]
    ),
    max_size=8,
).map(" ".join)


@given(WORDS, WORDS)
def test_english_is_scored_as_by_squad(got: str, expected: str) -> None:
    if not (normalized_by_squad(got) and normalized_by_squad(expected)):
        return  # the next test
    assert answer_words(got) == normalized_by_squad(got).split()
    assert token_f1(got, expected) == pytest.approx(f1_by_squad(got, expected), abs=1e-12)
    assert exact_match(got, expected) == (normalized_by_squad(got) == normalized_by_squad(expected))


@pytest.mark.parametrize(
    ("got", "expected", "match", "f1"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1.0, 1.0),
        # two of three words, two of two: P = 2/3, R = 1, F1 = 2 · 2/3 / (5/3)
        ("in Eiffel Tower", "the Eiffel Tower", 0.0, 0.8),
        # a word counts as often as it occurs in both: P = 1/3, R = 1
        ("yes yes yes", "yes", 0.0, 0.5),
        ("no", "yes", 0.0, 0.0),
        ("", "yes", 0.0, 0.0),
    ],
)
def test_figures_worked_out_by_hand(got: str, expected: str, match: float, f1: float) -> None:
    assert exact_match(got, expected) == match
    assert token_f1(got, expected) == pytest.approx(f1)


@pytest.mark.parametrize("text", ["A", "the", "!", "+", "B."])
def test_a_choice_that_squad_would_reduce_to_nothing_stays(text: str) -> None:
    assert (exact_match(text, text), token_f1(text, text)) == (1.0, 1.0)
    assert (exact_match("", text), token_f1("", text)) == (0.0, 0.0)
    assert exact_match("C", text) == 0.0


def test_punctuation_of_every_script_is_no_difference() -> None:
    assert exact_match("«Genève»", "genève") == 1.0
    assert exact_match("¿Dónde está?", "dónde está") == 1.0
    assert exact_match("是的。", "是的") == 1.0
    assert exact_match("“Yes” \u2013 it is…", "yes it is") == 1.0


def test_equal_texts_in_other_code_points_are_equal() -> None:
    composed = "Café"
    assert exact_match(unicodedata.normalize("NFD", composed), composed) == 1.0


def test_han_and_kana_are_compared_character_by_character() -> None:
    # three of four characters: P = 3/3, R = 3/4
    assert token_f1("北京市", "北京市区") == pytest.approx(6 / 7)
    assert answer_words("東京タワーは333mです") == [*"東京タワーは", "333m", *"です"]
    # Korean separates words by spaces
    assert answer_words("서울 특별시") == ["서울", "특별시"]


@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_are_fractions_and_agree(got: str, expected: str) -> None:
    assert 0 <= token_f1(got, expected) <= 1
    assert token_f1(got, expected) == pytest.approx(token_f1(expected, got))
    if expected.strip():
        assert exact_match(expected, expected) == token_f1(expected, expected) == 1
    if exact_match(got, expected):
        assert token_f1(got, expected) == 1
