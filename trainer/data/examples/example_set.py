"""Rows → examples for training and evaluation; every row is used, counted or refused, none is lost in silence."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.rows import ChatRow, PreferenceRow, Row, RowSchema
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection
from trainer.spec.data_section import PREFERENCE_METHODS

_T = TypeVar("_T")


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows; the first three add up to the rows read, `truncated` are among the first two.

    A row may give several examples (see `data.split_turns`): these are counts of rows.
    """

    train: int
    eval: int
    dropped: int
    truncated: int

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """Examples, split.

    Attributes:
        train: trained on.
        evaluation: held out; empty where `data.test_split_size` is 0 and no file is for evaluation.
        rows: what became of the rows.
        warnings: what the provider should know; quotes no row.
    """

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    rows: RowCounts
    warnings: tuple[str, ...]


def row_schema(data: DataSection) -> RowSchema:
    """How the job spec says that objects become rows."""
    return RowSchema(data.format.value, data.columns, frozenset(data.ignore_columns))


def is_for_evaluation(file: str, data: DataSection) -> bool:
    """Whether a file's rows are evaluated on, by its name relative to `data/`."""
    return fnmatchcase(file, data.eval_files)


def build_dataset(
    rows: Sequence[Row], tokens: ModelTokenizer, data: DataSection, *, seed: int, method: str = "sft"
) -> Dataset:
    """Encode every row and hold out the rows of evaluation files, or a share of all.

    For `train.method` `dpo` each row gives two examples: the chosen answer's, and behind it the rejected one's.

    Raises:
        DataError: a row or the whole is not trainable; nothing is trained on then.
    """
    for row in rows:
        check_trainable(row, tokens, method)
    encoded = list(_all_encoded(rows, tokens, data))
    kept = [one for one in encoded if one.examples]
    train, evaluation = split_rows(kept, data, seed=seed)
    counts = RowCounts(
        train=len(train),
        eval=len(evaluation),
        dropped=len(encoded) - len(kept),
        truncated=sum(one.truncated for one in kept),
    )
    parts = examples_of(train), examples_of(evaluation)
    per_row = 2 if method in PREFERENCE_METHODS else 1
    return Dataset(*parts, counts, tuple(_warnings(rows, tokens, *parts, counts, per_row)))


def _all_encoded(rows: Sequence[Row], tokens: ModelTokenizer, data: DataSection) -> Iterator[EncodedRow]:
    for encoded in encode_rows(rows, tokens, data):
        if isinstance(encoded, DataError):
            raise encoded
        yield encoded


def examples_of(rows: Iterable[EncodedRow]) -> tuple[Example, ...]:
    """The examples of all rows, in order."""
    return tuple(example for row in rows for example in row.examples)


def check_trainable(row: Row, tokens: ModelTokenizer, method: str) -> None:
    """Demand that this model can be trained on this kind of row, by this `train.method`.

    Raises:
        DataError: it cannot.
    """
    check_kind(row, method)
    side = row.chosen if isinstance(row, PreferenceRow) else row
    if isinstance(side, ChatRow) and not tokens.has_template:
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "the base model has no chat template",
            field="messages",
            expected="prompt and completion, or text",
            found="messages",
            hint="list chat_template.jinja in model.model_file_sha256, or write one into data.chat_template",
        )


def check_kind(row: Row, method: str) -> None:
    """Demand a kind of row that a `train.method` learns from: `dpo` from preferences, `sft` from all others.

    Raises:
        DataError: it is of another kind.
    """
    preference = isinstance(row, PreferenceRow)
    if preference == (method in PREFERENCE_METHODS):
        return
    raise row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        f"train.method {method} does not train on this kind of row",
        field=row.main_field,
        expected="messages, prompt and completion, or text" if preference else "chosen and rejected",
        found=row.kind_name,
        hint=f"set train.method to {'dpo' if preference else 'sft'}, or leave these rows out",
    )


def split_rows(
    rows: Sequence[EncodedRow], data: DataSection, *, seed: int
) -> tuple[tuple[EncodedRow, ...], tuple[EncodedRow, ...]]:
    """Training and evaluation: by file where there are files for evaluation, else a share chosen by `seed`.

    Raises:
        DataError: nothing to train on, or a share above 0 that leaves no row on one side.
    """
    held = tuple(row for row in rows if is_for_evaluation(row.row.file, data))
    train = tuple(row for row in rows if not is_for_evaluation(row.row.file, data))
    if not train:
        raise DataError(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "no rows are left" if not held else "every file is for evaluation (data.eval_files)",
            expected="at least one row to train on",
            found=0,
        )
    return (train, held) if held else split(train, data.test_split_size, seed=seed)


def split(items: Sequence[_T], share: float, *, seed: int) -> tuple[tuple[_T, ...], tuple[_T, ...]]:
    """Hold out `round(share * len(items))` items, chosen by `seed`; both parts keep their order.

    Raises:
        DataError: a share above 0 that leaves no item on one side.
    """
    if share == 0:
        return tuple(items), ()
    held = round(share * len(items))
    if not 0 < held < len(items):
        raise DataError(
            ErrorCode.DATASET_INVALID,
            f"data.test_split_size {share} leaves no row to {'evaluate on' if held == 0 else 'train on'}",
            expected="at least one row on each side",
            found=f"{held} of {len(items)} rows held out",
            hint="set data.test_split_size to 0 to train on every row without an evaluation",
        )
    chosen = set(random.Random(seed).sample(range(len(items)), held))  # noqa: S311 -- a split, not a secret
    parts = [item for number, item in enumerate(items) if number not in chosen]
    return tuple(parts), tuple(items[number] for number in sorted(chosen))


def _warnings(
    rows: Sequence[Row],
    tokens: ModelTokenizer,
    train: tuple[Example, ...],
    evaluation: tuple[Example, ...],
    counts: RowCounts,
    per_row: int,
) -> Iterator[str]:
    yield from tokens.notes
    if counts.dropped:
        yield f"{counts.dropped} of {len(rows)} rows were dropped: too long (data.on_overlong)"
    if counts.truncated:
        yield f"{counts.truncated} of {len(rows)} rows were truncated: their ends are not learned"
    yield from _warn_of_endless(train)
    extra = len(train) + len(evaluation) - per_row * (counts.train + counts.eval)
    if extra:
        yield f"{extra} examples more than rows: turns that the template renders differently later stand alone"
    seen = set(_identities(train, per_row))
    repeated = sum(identity in seen for identity in _identities(evaluation, per_row))
    if repeated:
        held = len(evaluation) // per_row
        yield f"{repeated} of {held} evaluation rows stand in the training part too: eval loss flatters"
    marked = sum(writes_special(row, tokens.special_texts) for row in rows)
    if marked:
        yield f"{marked} of {len(rows)} rows hold the text of a special token, which is read as that token"


def _identities(examples: Sequence[Example], per_row: int) -> Iterator[tuple[bytes, ...]]:
    """For each row with so many examples, or each example, what makes it another one's repetition."""
    ids = [example.ids.tobytes() for example in examples]
    return (tuple(ids[start : start + per_row]) for start in range(0, len(ids), per_row))


def _warn_of_endless(train: tuple[Example, ...]) -> Iterator[str]:
    endless = sum(not example.stops for example in train)
    if endless == len(train):
        yield "NO END OF TURN IS EVER TRAINED ON: no trained part holds a stop token, so no stopping is learned"
    elif endless > sum(example.truncated for example in train):
        yield f"{endless} of {len(train)} rows train on no end of turn"


def writes_special(row: Row, special: Iterable[str]) -> bool:
    """Whether a row writes the text of a special token out."""
    return any(token in text for text in row.texts for token in special)
