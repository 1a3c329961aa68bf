"""Batches taken from the device are the rows, in the order asked for."""

from __future__ import annotations

import random
from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.examples.example import Example
from trainer.training.token_store import TokenStore, single_batch

CPU = torch.device("cpu")


def example(source: random.Random) -> Example:
    length = source.randint(2, 12)
    trained = [0] + [source.randint(0, 1) for _ in range(length - 2)] + [1]
    return Example(
        array("i", [source.randrange(99) for _ in range(length)]), bytes(trained), stops=True
    )


@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_batch_is_its_rows(seed: int, data: st.DataObject) -> None:
    source = random.Random(seed)
    examples = [example(source) for _ in range(source.randint(1, 9))]
    order = source.choices(range(len(examples)), k=source.randint(1, 12))
    start = data.draw(st.integers(0, len(order) - 1))
    rows = slice(start, data.draw(st.integers(start + 1, len(order))))
    batch = TokenStore(examples, CPU).reorder(order).batch(rows)
    chosen = [examples[row] for row in order[rows]]
    # Nothing is predicted from the last.
    assert batch.input_ids.tolist() == [id_ for item in chosen for id_ in item.ids[:-1]]
    assert batch.position_ids.tolist() == [
        place for item in chosen for place in range(item.length - 1)
    ]
    assert batch.lengths == tuple(item.length - 1 for item in chosen)
    assert batch.cu_seqlens.tolist()[-1] == len(batch.input_ids)
    marks = [mark for item in chosen for mark in item.trained[1:]]
    assert batch.logit_positions.tolist() == [place for place, mark in enumerate(marks) if mark]
    following = [id_ for item in chosen for id_ in item.ids[1:]]
    assert batch.targets.tolist() == [
        id_ for id_, mark in zip(following, marks, strict=True) if mark
    ]


def test_what_stands_behind_the_last_trained_token_is_left_out() -> None:
    batch = single_batch([Example(array("i", [5, 6, 7, 8]), b"\0\1\0\0", stops=True)], CPU)
    assert batch.input_ids.tolist() == [5]
    assert batch.targets.tolist() == [6]


@pytest.mark.parametrize("pad", [1, 77])
def test_padding_stands_on_the_right_and_the_predicting_tokens_are_found(pad: int) -> None:
    batch = single_batch(
        [
            Example(array("i", [5, 6, 7]), b"\0\1\1", stops=True),
            Example(array("i", [8, 9]), b"\0\1", stops=True),
        ],
        CPU,
    )
    ids, places = batch.padded(pad)
    assert ids.tolist() == [[5, 6], [8, pad]]
    assert places.tolist() == [0, 1, 2]
    assert batch.targets.tolist() == [6, 7, 9]
