"""Rows → examples for training and evaluation; every row is used, counted or refused, none is lost in silence."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from trainer.errors import DataError, ErrorCode
from trainer.rows import ChatRow, CompletionRow, Row, TextRow
from trainer.spec import DataSection
from trainer.worker.encode import Example, encode
from trainer.worker.tokens import Tokens


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows; the first four add up to the rows read, `truncated` are among the first two."""

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
        evaluation: held out; empty where `data.test_split_size` is 0.
        rows: what became of the rows.
        warnings: what the provider should know; quotes no row.
    """

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    rows: RowCounts
    warnings: tuple[str, ...]


def build_dataset(rows: list[Row], tokens: Tokens, data: DataSection, *, seed: int) -> Dataset:
    """Encode every row and hold out a share of them.

    Raises:
        DataError: a row or the whole is not trainable; nothing is trained on then.
    """
    _check_template(rows, tokens)
    encoded = [encode(row, tokens, data) for row in rows]
    examples = [example for example in encoded if example is not None]
    if not examples:
        raise DataError(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "no rows are left",
            expected="at least one",
            found=0,
        )
    train, evaluation = split(examples, data.test_split_size, seed=seed)
    counts = RowCounts(
        train=len(train),
        eval=len(evaluation),
        dropped=len(encoded) - len(examples),
        truncated=sum(example.truncated for example in examples),
    )
    return Dataset(train, evaluation, counts, tuple(_warnings(rows, tokens, train, evaluation, counts)))


def _check_template(rows: list[Row], tokens: Tokens) -> None:
    if tokens.has_template:
        return
    for row in rows:
        if isinstance(row, ChatRow):
            raise row.refuse(
                ErrorCode.DATASET_NOT_TRAINABLE,
                "the base model has no chat template",
                field="messages",
                expected="prompt and completion, or text",
                found="messages",
                hint="use an instruction-tuned model, and list chat_template.jinja in model.model_file_sha256",
            )


def split(examples: list[Example], share: float, *, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Hold out `round(share * len(examples))` examples, chosen by `seed`; both parts keep their order.

    Raises:
        DataError: a share above 0 that leaves no example on one side.
    """
    if share == 0:
        return tuple(examples), ()
    held = round(share * len(examples))
    if not 0 < held < len(examples):
        raise DataError(
            ErrorCode.DATASET_INVALID,
            f"data.test_split_size {share} leaves no row to {'evaluate on' if held == 0 else 'train on'}",
            expected="at least one row on each side",
            found=f"{held} of {len(examples)} rows held out",
            hint="set data.test_split_size to 0 to train on every row without an evaluation",
        )
    chosen = set(random.Random(seed).sample(range(len(examples)), held))  # noqa: S311 -- a split, not a secret
    parts = [example for number, example in enumerate(examples) if number not in chosen]
    return tuple(parts), tuple(examples[number] for number in sorted(chosen))


def _warnings(
    rows: list[Row],
    tokens: Tokens,
    train: tuple[Example, ...],
    evaluation: tuple[Example, ...],
    counts: RowCounts,
) -> Iterator[str]:
    if counts.dropped:
        yield f"{counts.dropped} of {len(rows)} rows were dropped: too long (data.on_overlong)"
    if counts.truncated:
        yield f"{counts.truncated} of {len(rows)} rows were truncated: their ends are not learned"
    endless = sum(not example.stops for example in train)
    if endless == len(train):
        yield "NO END OF TURN IS EVER TRAINED ON: no trained part holds a stop token, so no stopping is learned"
    elif endless > counts.truncated:
        yield f"{endless} of {len(train)} rows train on no end of turn"
    seen = {example.ids.tobytes() for example in train}
    repeated = sum(example.ids.tobytes() in seen for example in evaluation)
    if repeated:
        yield f"{repeated} of {len(evaluation)} evaluation rows stand in the training part too: eval loss flatters"
    marked = sum(_writes_special(row, tokens.special_texts) for row in rows)
    if marked:
        yield f"{marked} of {len(rows)} rows hold the text of a special token, which is read as that token"


def _writes_special(row: Row, special: Iterable[str]) -> bool:
    return any(token in text for text in _texts(row) for token in special)


def _texts(row: Row) -> tuple[str, ...]:
    if isinstance(row, ChatRow):
        return tuple(message.content for message in row.messages)
    if isinstance(row, CompletionRow):
        return (row.prompt, row.completion)
    return (row.text,) if isinstance(row, TextRow) else ()
