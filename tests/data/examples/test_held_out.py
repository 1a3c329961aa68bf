"""Each row decides by itself whether it is held out: no row moves another."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

import pytest

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset, build_dataset
from trainer.data.examples.held_out import choose_evaluated, is_held_out, row_digest, seed_split_key
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.rows import Row, TextRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, OnOverlong

MakeTokens = Callable[..., ModelTokenizer]
KEY = b"\x07" * 32


def rows_of(count: int) -> list[Row]:
    return [TextRow("f", number, f"{number} word") for number in range(count)]


def sides(data: Dataset) -> dict[bytes, bool]:
    held = {example.ids.tobytes(): True for example in data.evaluation}
    return held | {example.ids.tobytes(): False for example in data.train}


def test_one_row_less_moves_no_other_row(make_tokens: MakeTokens) -> None:
    """By positions, leaving out the first of 200 rows moved 48 others to the other side."""
    tokens, data, rows = make_tokens(None), DataSection(test_split_size=0.2), rows_of(200)
    everything = sides(build_dataset(rows, tokens, data, split_key=KEY))
    for left_out in (0, 77, 199):
        rest = sides(
            build_dataset([*rows[:left_out], *rows[left_out + 1 :]], tokens, data, split_key=KEY)
        )
        assert len(rest) == 199
        assert rest.items() <= everything.items()
    other_order = build_dataset(rows[::-1], tokens, data, split_key=KEY)
    assert sides(other_order) == everything


def test_equal_rows_are_on_one_side_together(make_tokens: MakeTokens) -> None:
    rows: list[Row] = [TextRow("f", number, f"{number % 40} word") for number in range(200)]
    data = build_dataset(rows, make_tokens(None), DataSection(test_split_size=0.3), split_key=KEY)
    held = {example.ids.tobytes() for example in data.evaluation}
    assert held
    assert not held & {example.ids.tobytes() for example in data.train}
    assert not any("in the training part too" in warning for warning in data.warnings)


def test_the_fraction_is_that_of_the_spec_and_the_key_decides_who() -> None:
    digests = [
        row_digest([Example(array("i", [number]), b"\0", stops=True)]) for number in range(4000)
    ]
    for fraction in (0.0, 0.05, 0.5, 0.99):
        held = sum(is_held_out(digest, fraction, KEY) for digest in digests)
        assert abs(held - 4000 * fraction) <= 6 * math.sqrt(4000 * fraction * (1 - fraction))
    one, other = (
        [is_held_out(digest, 0.5, seed_split_key(seed)) for digest in digests] for seed in (1, 2)
    )
    same = sum(a == b for a, b in zip(one, other, strict=True))
    assert abs(same - 2000) < 6 * math.sqrt(1000)


def test_examples_of_a_row_are_told_apart() -> None:
    def one(*ids: int) -> Example:
        return Example(array("i", ids), bytes(len(ids)), stops=True)

    assert row_digest([one(1), one(2)]) != row_digest([one(1, 2)])


@pytest.mark.parametrize("fraction", [0, 0.1])
def test_a_dropped_row_of_an_evaluation_file_moves_no_other_row(
    make_tokens: MakeTokens, fraction: float
) -> None:
    """The only evaluation row is too long: without the file's decision, a tenth of the rest would be held out."""
    data = DataSection(max_length=16, on_overlong=OnOverlong.DROP, test_split_size=fraction)
    rows = [*rows_of(50), TextRow("eval/a", 0, "word " * 40)]
    kept = build_dataset(rows, make_tokens(None), data, split_key=KEY)
    assert kept.rows.as_dict() == {"train": 50, "eval": 0, "dropped": 1, "truncated": 0}
    (warning,) = [warning for warning in kept.warnings if warning.startswith("NO ROW IS HELD OUT")]
    assert (
        "every row of the files for evaluation (data.eval_files, or their split) was dropped"
        in warning
    )
    assert "test_split_size" not in warning


def test_a_split_without_training_rows_is_refused_and_one_without_evaluation_rows_says_so(
    make_tokens: MakeTokens,
) -> None:
    tokens = make_tokens(None)
    with pytest.raises(DataError, match="holds out all") as caught:
        build_dataset(rows_of(3), tokens, DataSection(test_split_size=0.9999), split_key=KEY)
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE
    data = build_dataset(rows_of(3), tokens, DataSection(test_split_size=0.0001), split_key=KEY)
    assert any(warning.startswith("NO ROW IS HELD OUT") for warning in data.warnings)
    assert (
        build_dataset(rows_of(3), tokens, DataSection(test_split_size=0), split_key=KEY).warnings
        == ()
    )


@pytest.mark.parametrize("size", [1, 2])
def test_the_rows_that_are_evaluated_are_drawn_once_and_keep_units_and_order(size: int) -> None:
    examples = [Example(array("i", [number, 7]), b"\0\1", stops=True) for number in range(20)]
    chosen = choose_evaluated(examples, 4, seed=3, rows_per_unit=size)
    numbers = [example.ids[0] for example in chosen]
    assert len(numbers) == 4 * size
    assert numbers == sorted(set(numbers))
    assert all(numbers[start] % size == 0 for start in range(0, len(numbers), size))
    assert all(
        numbers[start + size - 1] - numbers[start] == size - 1
        for start in range(0, len(numbers), size)
    )
    assert choose_evaluated(examples, 4, seed=3, rows_per_unit=size) == chosen
    assert choose_evaluated(examples, 4, seed=4, rows_per_unit=size) != chosen
    for most in (None, 20):
        assert choose_evaluated(examples, most, seed=3, rows_per_unit=size) == tuple(examples)
