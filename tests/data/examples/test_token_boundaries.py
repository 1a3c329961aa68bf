"""Boundaries found through special tokens are those that tokenising each beginning whole would find."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.token_boundaries import SpecialTokenFinder, text_prefixes

MakeTokens = Callable[..., ModelTokenizer]

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
PIECES = st.one_of(
    st.sampled_from([*SPECIAL, "<|im", "_end|>", "\n", " ", "  ", "assistant\n"]),
    st.text(max_size=6),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


def odd_backend(kind: str) -> Tokenizer:
    """Tokenizers with what could break the rule: other added tokens, longer ones, white space swallowed."""
    vocabulary = {chr(code): code - 32 for code in range(32, 127)} | {
        "▁": 95,
        "<unk>": 96,
        "▁a": 97,
    }
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", fuse_unk=True))
    if kind == "prepends":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace()
    strips = kind == "strips"
    backend.add_special_tokens([AddedToken(text, lstrip=strips, rstrip=strips) for text in SPECIAL])
    if kind == "longer":
        backend.add_tokens(
            [AddedToken("<|im_end|>\n"), AddedToken("assistant"), AddedToken("<|im", special=True)]
        )
    return backend


@pytest.fixture(scope="module", params=["bytes", "prepends", "first", "strips", "longer"])
def tokens(request: pytest.FixtureRequest, backend: Tokenizer) -> ModelTokenizer:
    chosen = (
        Tokenizer.from_str(backend.to_str())
        if request.param == "bytes"
        else odd_backend(request.param)
    )
    return ModelTokenizer(chosen, {"eos_token": "</s>"}, {})


@given(text=TEXTS, share=st.floats(0, 1))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_beginnings_have_the_ids_that_they_have_alone(
    tokens: ModelTokenizer, text: str, share: float
) -> None:
    position, whole = round(share * len(text)), array("i", tokens.ids(text))
    (beginning,) = text_prefixes(text, tokens.special_token_finder.align(text, whole), [position])
    ids_of = tokens.lookup([beginning.rest])
    alone = array("i", tokens.ids(text[:position]))
    assert beginning.ids(whole, ids_of) == alone
    length = beginning.length_in(whole, ids_of)
    assert length == (len(alone) if whole[: len(alone)] == alone else None)


def test_little_is_tokenised_where_special_tokens_stand(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None)
    text = "<|im_start|>user\nlong question<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n"
    anchors = tokens.special_token_finder.align(text, tokens.ids(text))
    assert len(anchors) == 4
    positions = [text.index("answer"), len(text)]
    rests = [beginning.rest for beginning in text_prefixes(text, anchors, positions)]
    assert rests == ["<|im_start|>assistant\n", "<|im_end|>\n"]


def test_text_and_ids_that_do_not_agree_give_no_match(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None)
    assert tokens.special_token_finder.align("a<s>b", tokens.ids("a</s>b")) == ()
    assert SpecialTokenFinder({}).align("a<s>b", [1, 2]) == ()


def test_tokens_that_swallow_white_space_are_no_matches() -> None:
    assert ModelTokenizer(odd_backend("strips"), {}, {}).special_token_finder.ids == {}
    assert set(ModelTokenizer(odd_backend("first"), {}, {}).special_token_finder.ids) == set(
        SPECIAL
    )


def test_ids_of_short_texts_are_kept_and_right(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None)
    texts = ["a", "b" * 100, "a"]
    assert tokens.lookup(texts) == {text: array("i", tokens.ids(text)) for text in texts}
    assert tokens.lookup(texts) == {text: array("i", tokens.ids(text)) for text in texts}
    assert tokens.lookup([]) == {}
