"""Turns rows into the examples of training and evaluation. Every row is used, counted as dropped, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.held_out import is_held_out, row_digest
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.rows import ChatRow, PreferenceRow, Row, RowSchema
from trainer.errors import DataError, ErrorCode
from trainer.spec import METHOD_RULES, DataSection, MethodName


@dataclass(frozen=True)
class RowCounts:
    """Numbers of rows by outcome.

    `train`, `eval` and `dropped` add up to the rows read; `truncated` counts rows of the first two. A row may
    give several examples (see `data.split_turns`).
    """

    train: int
    eval: int
    dropped: int
    truncated: int

    def as_dict(self) -> dict[str, int]:
        """Returns the counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """The examples of a job.

    Attributes:
        train: examples to train on.
        evaluation: held-out examples; empty if `data.test_split_size` is 0 and no file is for evaluation.
        rows: numbers of rows by outcome.
        warnings: messages for the provider; none quotes a row.
    """

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    rows: RowCounts
    warnings: tuple[str, ...]


def row_schema(data: DataSection) -> RowSchema:
    """Returns how the objects of the files become rows, according to the job spec."""
    return RowSchema(data.format.value, data.columns, frozenset(data.ignore_columns))


def is_for_evaluation(file: str, data: DataSection) -> bool:
    """Returns whether a file is for evaluation, by its name relative to `data/`."""
    return fnmatchcase(file, data.eval_files)


def build_dataset(
    rows: Sequence[Row],
    tokens: ModelTokenizer,
    data: DataSection,
    *,
    split_key: bytes,
    method: MethodName = "sft",
) -> Dataset:
    """Encodes every row, and holds out the rows of evaluation files or a fraction of all rows.

    With a method that learns from pairs each row gives two examples: the chosen answer, then the rejected answer.

    Args:
        rows: the rows of all files.
        tokens: tokenizer and chat template.
        data: how rows become examples, and which are held out.
        split_key: decides which rows are held out, where no file does.
        method: what is learned from a row.

    Raises:
        DataError: a row is not trainable, or no row is left to train on.
    """
    for row in rows:
        check_trainable(row, tokens, method)
    encoded: list[EncodedRow] = []
    for outcome in encode_rows(rows, tokens, data):
        if isinstance(outcome, DataError):
            raise outcome
        encoded.append(outcome)
    kept = [one for one in encoded if one.examples]
    # By all rows, also those that are dropped: whether the files decide must not depend on a single row's length.
    by_files = any(is_for_evaluation(row.file, data) for row in rows)
    train, evaluation = split_rows(kept, data, key=split_key, by_files=by_files)
    counts = RowCounts(
        train=len(train),
        eval=len(evaluation),
        dropped=len(encoded) - len(kept),
        truncated=sum(one.truncated for one in kept),
    )
    parts = examples_of(train), examples_of(evaluation)
    per_row = METHOD_RULES[method].examples_per_row
    warnings = list(_warnings(rows, tokens, *parts, counts, per_row))
    if not evaluation and (by_files or data.test_split_size):
        warnings.append(no_evaluation_warning(len(kept), data, by_files=by_files))
    return Dataset(*parts, counts, tuple(warnings))


def examples_of(rows: Iterable[EncodedRow]) -> tuple[Example, ...]:
    """Returns the examples of all rows, in order."""
    return tuple(example for row in rows for example in row.examples)


def check_trainable(row: Row, tokens: ModelTokenizer, method: MethodName) -> None:
    """Requires that a model can be trained on a row with a `train.method`.

    Raises:
        DataError: the method takes other rows, or the model has no chat template.
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


def check_kind(row: Row, method: MethodName) -> None:
    """Requires a row of a kind that a `train.method` learns from.

    Raises:
        DataError: the row is of another kind.
    """
    preference = isinstance(row, PreferenceRow)
    if preference == METHOD_RULES[method].learns_from_pairs:
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
    rows: Sequence[EncodedRow], data: DataSection, *, key: bytes, by_files: bool
) -> tuple[tuple[EncodedRow, ...], tuple[EncodedRow, ...]]:
    """Splits rows into training and evaluation: by their files, or each row by a keyed hash of itself.

    Args:
        rows: the rows that give examples.
        data: names the files for evaluation, and the fraction to hold out.
        key: decides which rows are held out.
        by_files: whether any row of the dataset, also a dropped one, is in a file for evaluation.

    Raises:
        DataError: there is no row to train on.
    """

    def is_held(row: EncodedRow) -> bool:
        if by_files:
            return is_for_evaluation(row.row.file, data)
        return is_held_out(row_digest(row.examples), data.test_split_size, key)

    held = [is_held(row) for row in rows]
    require_training_rows(len(rows), sum(held), data, by_files=by_files)
    sides: tuple[list[EncodedRow], list[EncodedRow]] = ([], [])
    for row, is_evaluated in zip(rows, held, strict=True):
        sides[is_evaluated].append(row)
    return tuple(sides[0]), tuple(sides[1])


def require_training_rows(rows: int, held: int, data: DataSection, *, by_files: bool) -> None:
    """Requires that not every row is held out.

    Raises:
        DataError: `DATASET_NOT_TRAINABLE`.
    """
    if held < rows:
        return
    reason = "every file is for evaluation (data.eval_files)" if by_files else "data.test_split_size holds out all"
    raise DataError(
        ErrorCode.DATASET_NOT_TRAINABLE,
        reason if rows else "no rows are left",
        expected="at least one row to train on",
        found=0,
        hint="add rows" if by_files or not rows else f"lower data.test_split_size ({data.test_split_size})",
    )


def no_evaluation_warning(rows: int, data: DataSection, *, by_files: bool) -> str:
    """Returns the warning where rows are to be held out, by files or as a fraction, and no row is."""
    reason = (
        "every row of the files for evaluation (data.eval_files) was dropped"
        if by_files
        else f"data.test_split_size {data.test_split_size} of {rows} rows left none"
    )
    return f"NO ROW IS HELD OUT: {reason}, so no loss is measured on rows that were not trained on"


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
    # A model that never predicts a stop token does not learn to end an answer. Rows that were cut have lost their
    # end of turn and are reported above, so only more than those are worth a warning.
    endless = sum(not example.stops for example in train)
    if endless == len(train):
        yield "NO END OF TURN IS EVER TRAINED ON: no trained part holds a stop token, so no stopping is learned"
    elif endless > sum(example.truncated for example in train):
        yield f"{endless} of {len(train)} rows train on no end of turn"
    extra = len(train) + len(evaluation) - per_row * (counts.train + counts.eval)
    if extra:
        yield f"{extra} examples more than rows: turns that the template renders differently later are split off"
    seen = set(_identities(train, per_row))
    repeated = sum(identity in seen for identity in _identities(evaluation, per_row))
    if repeated:
        held = len(evaluation) // per_row
        yield f"{repeated} of {held} evaluation rows are in the training part too: the eval loss is too optimistic"
    marked = sum(writes_special(row, tokens.special_texts) for row in rows)
    if marked:
        yield f"{marked} of {len(rows)} rows hold the text of a special token, which is read as that token"


def _identities(examples: Sequence[Example], per_row: int) -> Iterator[tuple[bytes, ...]]:
    """Yields for each row the bytes of its token ids, one item for each of its `per_row` examples."""
    ids = [example.ids.tobytes() for example in examples]
    return (tuple(ids[start : start + per_row]) for start in range(0, len(ids), per_row))


def writes_special(row: Row, special: Iterable[str]) -> bool:
    """Returns whether a row contains the text of a special token."""
    return any(token in text for text in row.texts for token in special)
