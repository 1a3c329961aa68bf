"""Tokenising ahead: the order of the results, and what runs at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import CHUNK_ROWS, encode_rows
from trainer.data.examples.token_boundaries import TokenizedText
from trainer.data.examples.tokenizer_thread import TokenizerThread
from trainer.data.rows import ChatRow, Message, Row, TextRow
from trainer.errors import DataError
from trainer.spec import DataSection

MakeTokens = Callable[..., ModelTokenizer]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}assistant: {% endif %}"


def test_the_next_item_is_made_while_the_thread_works() -> None:
    second_is_made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second_is_made.set()
        yield 2

    with closing(TokenizerThread()) as thread:
        waited = [
            result for _, result in thread.each(items(), lambda _: second_is_made.wait(timeout=5))
        ]
    assert waited == [True, True]


def test_results_come_in_the_order_of_the_items() -> None:
    with closing(TokenizerThread()) as thread:
        doubled = thread.each(
            thread.each(iter(range(9)), lambda item: 2 * item), lambda pair: pair[1] + 1
        )
        assert list(doubled) == [((item, 2 * item), 2 * item + 1) for item in range(9)]


def test_an_error_comes_in_the_turn_of_its_item() -> None:
    with closing(TokenizerThread()) as thread:
        results = thread.each(iter((2, 1, 0, 3)), lambda item: 1 // item)
        assert [next(results), next(results)] == [(2, 0), (1, 1)]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_rows_are_rendered_while_others_are_tokenised(
    make_tokens: MakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = make_tokens(None)
    tokens.cuts_texts = False
    later_row_is_read, tokenise = threading.Event(), tokens.tokenize

    def rows() -> Iterator[Row]:
        for number in range(CHUNK_ROWS + 1):
            if number == CHUNK_ROWS:
                later_row_is_read.set()
            yield TextRow("f", number, f"row {number}")

    def wait_and_tokenise(texts: list[str]) -> list[TokenizedText]:
        assert later_row_is_read.wait(timeout=5)
        return tokenise(texts)

    monkeypatch.setattr(tokens, "tokenize", wait_and_tokenise)
    assert len(list(encode_rows(rows(), tokens, DataSection()))) == CHUNK_ROWS + 1


def test_the_number_of_threads_changes_no_byte(
    make_tokens: MakeTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        ChatRow(
            "f",
            number,
            (Message("user", f"{number} asks"), Message("assistant", "says " * (number % 7 + 1))),
        )
        for number in range(2 * CHUNK_ROWS + 3)
    ]
    encoded = []
    for parallel, cuts in (("false", False), ("true", False), ("true", True)):
        tokens = make_tokens(TEMPLATE + PROMPT)
        tokens.cuts_texts = cuts
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        outcomes = list(encode_rows(rows, tokens, DataSection()))
        assert not any(isinstance(outcome, DataError) for outcome in outcomes)
        encoded.append(outcomes)
    assert encoded[0] == encoded[1] == encoded[2]
