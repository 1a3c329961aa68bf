"""Texts that are tokenised piece by piece have the ids of the tokenizer's own pass over them."""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from trainer.data.examples import text_pieces
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.text_pieces import (
    INDEPENDENT_PATTERNS,
    TextTokenizer,
    cut_text,
    has_independent_words,
)
from trainer.data.examples.token_boundaries import Ids, text_prefixes

CORPUS = [
    "It's the patient's 3rd visit in 2024, isn't it?\n\n  Yes:  ja, für  Übermut “weiß” 한국 사람 中文 . . "
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "  ", "\n", " \n", "\r\n", "\t", "'s", " 'll", "<|end|>", " <|end|> ", "é", " \u0301a", "\u00a0",
             "\u2028", "\x1c", "\x85", "\u3000", "12", " 1234 5", "(a", " ((", "/\n", "中文", "한국 사람",
             "für", "Über "]
        ),
        st.text(max_size=4),
        st.text("ab 1'", max_size=8),
    ),
    max_size=14,
).map("".join)  # fmt: skip


def make_backend(split: Any, normalizer: Any = None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet)
    )
    backend.add_special_tokens(["<|end|>"])
    return backend


def ids_of(backend: Tokenizer, texts: list[str]) -> list[Ids]:
    encoded = backend.encode_batch(texts, add_special_tokens=False)
    return [array("i", encoding.ids) for encoding in encoded]


def by_pattern(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


SPLITS = {
    "gpt2": gpt2(),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()]),
    **{
        f"pattern {number}": by_pattern(pattern)
        for number, pattern in enumerate(sorted(INDEPENDENT_PATTERNS))
    },
}


@pytest.fixture(scope="module", params=SPLITS)
def backend(request: pytest.FixtureRequest) -> Tokenizer:
    return make_backend(
        SPLITS[request.param], normalizers.NFC() if request.param != "gpt2" else None
    )


@given(texts=st.lists(TEXTS, max_size=3))
@settings(max_examples=50, deadline=None)
def test_pieces_have_the_ids_of_the_text(backend: Tokenizer, texts: list[str]) -> None:
    assert has_independent_words(backend)
    whole = ids_of(backend, texts)
    pieces = TextTokenizer(backend)
    assert pieces.ids_of(texts) == whole
    assert pieces.ids_of(texts) == whole  # from the cache


@given(text=TEXTS)
def test_pieces_are_the_text(text: str) -> None:
    pieces = cut_text(text)
    assert " ".join(pieces) == text
    for before, after in pairwise(pieces):
        assert not before[-1].isspace()
        assert not after[0].isspace()


OVERLAPPING = ["<|end|>", "<|end|>\n", "<|e", "<|", "nd|>", "end", "\n", " ", " a", "é"]


@given(text=st.lists(st.sampled_from(OVERLAPPING), max_size=9).map("".join), share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_overlapping_added_tokens_split_as_the_tokenizer_splits(text: str, share: float) -> None:
    backend = Tokenizer.from_str(_OVERLAPPING_BACKEND)
    assert has_independent_words(backend)
    (tokenized,) = TextTokenizer(backend).tokenize([text])
    assert [tokenized.ids] == ids_of(backend, [text])
    # A beginning of the text has the ids that it has alone, whichever token it ends in.
    position = round(share * len(text))
    assert tokenized.special_tokens is not None
    (prefix,) = text_prefixes(text, tokenized.special_tokens, [position])
    beginning, rest = ids_of(backend, [text[:position], prefix.rest])
    assert prefix.ids(tokenized.ids, {prefix.rest: rest}) == beginning


def make_overlapping() -> str:
    backend = make_backend(gpt2(), normalizers.NFC())
    backend.add_tokens(
        [
            AddedToken("<|end|>\n", normalized=False),
            AddedToken("<|e", special=True, normalized=False),
            AddedToken("nd|>", normalized=True),
            AddedToken("end", normalized=True),
        ]
    )
    return backend.to_str()


_OVERLAPPING_BACKEND = make_overlapping()


def test_only_a_tokenizer_that_cuts_texts_says_where_special_tokens_are() -> None:
    backend = make_backend(gpt2())
    (tokenized,) = TextTokenizer(backend).tokenize(["a b<|end|>c<|end|>"])
    end = backend.token_to_id("<|end|>")
    assert tokenized.special_tokens is not None
    assert [(match.token, match.end) for match in tokenized.special_tokens] == [
        ("<|end|>", 10),
        ("<|end|>", 18),
    ]
    assert [tokenized.ids[match.token_index] for match in tokenized.special_tokens] == [end, end]
    backend.pre_tokenizer = None
    (tokenized,) = TextTokenizer(backend).tokenize(["<|end|>"])
    assert tokenized.special_tokens is None


def test_pieces_end_at_added_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []

    def note_and_cut(text: str) -> list[str]:
        cut.append(text)
        return cut_text(text)

    monkeypatch.setattr(text_pieces, "cut_text", note_and_cut)
    TextTokenizer(make_backend(gpt2())).ids_of(["a b<|end|>c"])
    assert cut == ["a b", "<|end|>", "c"]


def test_words_are_pieces() -> None:
    assert cut_text("user\nfür  den Tag.\n\nNein !") == ["user\nfür  den", "Tag.\n\nNein", "!"]


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": pre_tokenizers.Digits(individual_digits=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": by_pattern(r"\S+ \S+")},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {"normalizer": normalizers.Replace(" ", "▁")},
        {"normalizer": normalizers.NFKC()},
    ],
    ids=str,
)
def test_a_tokenizer_that_is_not_known_sees_the_text_whole(change: dict[str, Any]) -> None:
    backend = make_backend(gpt2())
    for name, value in change.items():
        setattr(backend, name, value)
    assert not has_independent_words(backend)
    texts = ["a b 1", "isn't  it"]
    assert TextTokenizer(backend).ids_of(texts) == ids_of(backend, texts)


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("a b"),
        AddedToken("<r>", rstrip=True),
        AddedToken("<l>", lstrip=True),
        AddedToken("w", single_word=True),
    ],
    ids=lambda token: token.content,
)
def test_an_added_token_that_reads_over_a_space_excludes_pieces(token: AddedToken) -> None:
    backend = make_backend(gpt2())
    backend.add_tokens([token])
    assert not has_independent_words(backend)


def test_random_merges_exclude_pieces() -> None:
    backend = make_backend(gpt2())
    backend.model.dropout = 0.1
    assert not has_independent_words(backend)


def test_the_cache_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_pieces, "MAX_CACHED_CHARACTERS", 8)
    backend = make_backend(gpt2())
    pieces = TextTokenizer(backend)
    for text, cached in (("one two", 6), (f"{'long' * 30} one", 9), ("one three", 3)):
        assert pieces.ids_of([text]) == ids_of(backend, [text])
        assert pieces.cached_characters == cached


def test_the_model_s_tokenizer_cuts_texts(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ModelTokenizer(Tokenizer.from_str(backend.to_str()), {"eos_token": "<|end|>"}, {})
    cut: list[str] = []

    def note_and_cut(text: str) -> list[str]:
        cut.append(text)
        return cut_text(text)

    monkeypatch.setattr(text_pieces, "cut_text", note_and_cut)
    assert tokens.ids_of(["a b"]) == ids_of(backend, ["a b"])
    assert cut == ["a b"]
