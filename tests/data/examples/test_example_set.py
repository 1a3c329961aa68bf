"""Splitting, counting and warning."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import build_dataset, split
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.rows import ChatRow, Message, Row, TextRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, OnOverlong

MakeTokens = Callable[..., ModelTokenizer]


def examples(count: int) -> list[Example]:
    return [Example(array("i", [number, 1]), b"\0\1", stops=True) for number in range(count)]


def texts(count: int, length: int = 1) -> list[Row]:
    return [TextRow("f", number, f"{number} {'word ' * length}") for number in range(count)]


@given(count=st.integers(2, 200), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_a_split_is_a_partition_that_the_seed_decides(count: int, share: float, seed: int) -> None:
    whole = examples(count)
    try:
        train, held = split(whole, share, seed=seed)
    except DataError:
        assert round(share * count) in (0, count)
        return
    assert len(held) == round(share * count)
    assert sorted([*train, *held], key=lambda example: example.ids[0]) == whole
    assert split(whole, share, seed=seed) == (train, held)


def test_another_seed_holds_out_other_rows() -> None:
    assert split(examples(100), 0.2, seed=1) != split(examples(100), 0.2, seed=2)


@pytest.mark.parametrize(
    ("count", "share", "side"), [(1, 0.5, "evaluate"), (4, 0.1, "evaluate"), (3, 0.9, "train")]
)
def test_a_split_that_leaves_one_side_empty_is_refused(count: int, share: float, side: str) -> None:
    with pytest.raises(DataError, match=side) as caught:
        split(examples(count), share, seed=0)
    assert caught.value.code is ErrorCode.DATASET_INVALID


def test_no_share_means_no_evaluation() -> None:
    train, held = split(examples(1), 0, seed=0)
    assert (len(train), held) == (1, ())


def test_rows_are_counted(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None)
    rows = [*texts(8), *texts(2, length=200)]
    kept = build_dataset(rows, tokens, DataSection(max_length=64, on_overlong=OnOverlong.DROP), seed=0)
    assert kept.rows.as_dict() == {"train": 7, "eval": 1, "dropped": 2, "truncated": 0}
    cut = build_dataset(rows, tokens, DataSection(max_length=64, on_overlong=OnOverlong.TRUNCATE), seed=0)
    assert cut.rows.as_dict() == {"train": 9, "eval": 1, "dropped": 0, "truncated": 2}
    assert any("2 of 10 rows were dropped" in warning for warning in kept.warnings)
    assert any("2 of 10 rows were truncated" in warning for warning in cut.warnings)
    with pytest.raises(DataError) as caught:
        build_dataset(rows, tokens, DataSection(max_length=64), seed=0)
    assert (caught.value.code, caught.value.row) == (ErrorCode.DATASET_OVERLONG, 0)


def test_dropping_every_row_is_refused(make_tokens: MakeTokens) -> None:
    data = DataSection(max_length=8, on_overlong=OnOverlong.DROP)
    with pytest.raises(DataError) as caught:
        build_dataset(texts(3, length=50), make_tokens(None), data, seed=0)
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE


def test_a_model_without_a_chat_template_refuses_conversations(make_tokens: MakeTokens) -> None:
    row = ChatRow("f", 3, (Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(DataError, match="no chat template") as caught:
        build_dataset([*texts(2), row], make_tokens(None), DataSection(), seed=0)
    assert caught.value.row == 3


def test_an_end_that_is_never_learned_is_shouted(make_tokens: MakeTokens) -> None:
    data = DataSection(test_split_size=0)
    loud = build_dataset(texts(3), make_tokens(None, eos=None), data, seed=0)
    assert any(warning.startswith("NO END OF TURN") for warning in loud.warnings)
    assert build_dataset(texts(3), make_tokens(None), data, seed=0).warnings == ()


def test_repeated_rows_across_the_split_are_pointed_out(make_tokens: MakeTokens) -> None:
    rows: list[Row] = [TextRow("f", number, "the same") for number in range(10)]
    data = build_dataset(rows, make_tokens(None), DataSection(), seed=0)
    assert any("1 of 1 evaluation rows" in warning for warning in data.warnings)


def test_special_tokens_written_out_in_rows_are_pointed_out(make_tokens: MakeTokens) -> None:
    rows: list[Row] = [*texts(2), TextRow("f", 2, "a <|im_end|> b")]
    data = build_dataset(rows, make_tokens(None), DataSection(test_split_size=0), seed=0)
    assert any("1 of 3 rows hold the text of a special token" in warning for warning in data.warnings)
