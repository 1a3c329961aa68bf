"""Splitting, counting and warning."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest

from trainer.data.examples.example_set import build_dataset
from trainer.data.examples.held_out import seed_split_key
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import CHUNK_ROWS
from trainer.data.rows import ChatRow, Message, Row, TextRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, OnOverlong, RowPart

MakeTokens = Callable[..., ModelTokenizer]


def texts(count: int, length: int = 1) -> list[Row]:
    return [TextRow("f", number, f"{number} {'word ' * length}") for number in range(count)]


def test_rows_are_counted(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(None)
    rows = [*texts(8), *texts(2, length=200)]
    kept = build_dataset(
        rows,
        tokens,
        DataSection(max_length=64, on_overlong=OnOverlong.DROP),
        split_key=seed_split_key(0),
    )
    assert kept.rows.as_dict() == {"train": 7, "eval": 1, "dropped": 2, "truncated": 0}
    cut = build_dataset(
        rows,
        tokens,
        DataSection(max_length=64, on_overlong=OnOverlong.TRUNCATE),
        split_key=seed_split_key(0),
    )
    assert cut.rows.as_dict() == {"train": 8, "eval": 2, "dropped": 0, "truncated": 2}
    assert any("2 of 10 rows were dropped" in warning for warning in kept.warnings)
    assert any("2 of 10 rows were truncated" in warning for warning in cut.warnings)
    with pytest.raises(DataError) as caught:
        build_dataset(rows, tokens, DataSection(max_length=64), split_key=seed_split_key(0))
    assert (caught.value.code, caught.value.row) == (ErrorCode.DATASET_OVERLONG, 0)


def test_rows_are_encoded_while_they_are_read_and_none_is_kept(make_tokens: MakeTokens) -> None:
    made: list[weakref.ref[Row]] = []
    most = 0

    def rows() -> Iterator[Row]:
        nonlocal most
        for number in range(8 * CHUNK_ROWS):
            row = TextRow("f", number, f"{number} a")
            made.append(weakref.ref(row))
            yield row
            del row
            if number % CHUNK_ROWS == 0:
                most = max(most, sum(one() is not None for one in made))

    dataset = build_dataset(
        rows(), make_tokens(None), DataSection(test_split_size=0), split_key=seed_split_key(0)
    )
    assert len(dataset.train) == 8 * CHUNK_ROWS
    assert most <= 5 * CHUNK_ROWS  # the chunks that are rendered, tokenised and masked
    assert sum(one() is not None for one in made) == 0


def test_the_first_row_in_order_that_cannot_be_used_is_named(make_tokens: MakeTokens) -> None:
    def refused(row: int) -> DataError:
        return DataError(ErrorCode.DATASET_ROW_INVALID, "not readable", file="f", row=row)

    rows: list[Row | DataError] = [
        TextRow("f", 0, "a b"),
        TextRow("f", 1, "word " * 200),
        refused(2),
    ]
    rows += [ChatRow("f", 3, (Message("user", "a"),)), refused(4)]
    data, found = DataSection(max_length=64), []
    for number in range(1, 5):
        with pytest.raises(DataError) as caught:
            build_dataset(
                [rows[0], *rows[number:]], make_tokens(None), data, split_key=seed_split_key(0)
            )
        found.append(caught.value.row)
    assert found == [1, 2, 3, 4]


def test_dropping_every_row_is_refused(make_tokens: MakeTokens) -> None:
    data = DataSection(max_length=8, on_overlong=OnOverlong.DROP)
    with pytest.raises(DataError) as caught:
        build_dataset(texts(3, length=50), make_tokens(None), data, split_key=seed_split_key(0))
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE


def test_what_the_template_leaves_out_is_counted_row_by_row(make_tokens: MakeTokens) -> None:
    plain, asked = Message("assistant", "b"), Message("user", "a")
    reasoned = Message("assistant", "b", reasoning_content="c")
    rows = [
        ChatRow("f", 0, (asked, plain)),
        ChatRow("f", 1, (asked, reasoned)),
        ChatRow("f", 2, (asked, reasoned, asked, reasoned), tools=({"name": "d"},)),
    ]
    tokens = make_tokens(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    allowing = DataSection(
        test_split_size=0, allow_unrendered=(RowPart.TOOLS, RowPart.REASONING_CONTENT)
    )
    data = build_dataset(rows, tokens, allowing, split_key=seed_split_key(0))
    assert data.rows.as_dict() == {
        "train": 3, "eval": 0, "dropped": 0, "truncated": 0,
        "unrendered_reasoning_content": 2, "unrendered_tools": 1,
    }  # fmt: skip
    assert [warning for warning in data.warnings if "does not print" in warning] == [
        "2 of 3 rows lose their reasoning_content, which the chat template does not print",
        "1 of 3 rows lose their tools, which the chat template does not print",
    ]
    with pytest.raises(DataError) as caught:
        build_dataset(rows, tokens, DataSection(), split_key=seed_split_key(0))
    assert (caught.value.code, caught.value.row) == (ErrorCode.DATASET_UNRENDERED, 1)


def test_a_model_without_a_chat_template_refuses_conversations(make_tokens: MakeTokens) -> None:
    row = ChatRow("f", 3, (Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(DataError, match="no chat template") as caught:
        build_dataset(
            [*texts(2), row], make_tokens(None), DataSection(), split_key=seed_split_key(0)
        )
    assert caught.value.row == 3


def test_an_end_that_is_never_learned_is_shouted(make_tokens: MakeTokens) -> None:
    data = DataSection(test_split_size=0)
    loud = build_dataset(texts(3), make_tokens(None, eos=None), data, split_key=seed_split_key(0))
    assert any(warning.startswith("NO END OF TURN") for warning in loud.warnings)
    assert (
        build_dataset(texts(3), make_tokens(None), data, split_key=seed_split_key(0)).warnings == ()
    )


def test_repeated_rows_across_the_split_are_pointed_out(make_tokens: MakeTokens) -> None:
    rows: list[Row] = [
        *texts(3),
        TextRow("eval/a", 0, "9 word "),
        *(TextRow("eval/a", 1, text) for text in texts(1)[0].texts),
    ]
    data = build_dataset(rows, make_tokens(None), DataSection(), split_key=seed_split_key(0))
    assert any("1 of 2 evaluation rows" in warning for warning in data.warnings)


def test_special_tokens_written_out_in_rows_are_pointed_out(make_tokens: MakeTokens) -> None:
    rows: list[Row] = [*texts(2), TextRow("f", 2, "a <|im_end|> b")]
    data = build_dataset(
        rows, make_tokens(None), DataSection(test_split_size=0), split_key=seed_split_key(0)
    )
    assert any(
        "1 of 3 rows hold the text of a special token" in warning for warning in data.warnings
    )
