"""Turns rows into the examples of training and evaluation. Every row is used, counted as dropped, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from trainer.data.examples.evaluation_files import check_evaluation_files
from trainer.data.examples.example import Example
from trainer.data.examples.mixing import SetCounts, check_mix
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.examples.row_outcomes import RowOutcomes
from trainer.data.examples.row_summary import RowSummarizer
from trainer.data.examples.task_draw import TaskDraw
from trainer.data.rows import ChatRow, PreferenceRow, Row, RowSchema, UnpairedPreferenceRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import METHOD_RULES, DataSection, LearnedRows, MethodName


@dataclass(frozen=True)
class RowCounts:
    """Numbers of rows by outcome.

    `train`, `eval`, `dropped` and `undrawn` add up to the rows read; `truncated` counts rows of the others. A row
    may give several examples (see `data.split_turns`). `unrendered` counts for each part of a conversation the
    rows that the chat template prints without it. `undrawn` counts the rows that `data.mix` leaves out, which are
    not among `train`; without `data.mix` it is None.
    """

    train: int
    eval: int
    dropped: int
    truncated: int
    unrendered: Mapping[str, int] = field(default_factory=dict)
    undrawn: int | None = None

    def as_dict(self) -> dict[str, int]:
        """Returns the counts by name, those of unrendered parts as `unrendered_` and the part."""
        counts = {
            "train": self.train,
            "eval": self.eval,
            "dropped": self.dropped,
            "truncated": self.truncated,
        }
        undrawn = {} if self.undrawn is None else {"undrawn": self.undrawn}
        return (
            counts
            | undrawn
            | {f"unrendered_{part}": count for part, count in self.unrendered.items()}
        )


@dataclass(frozen=True)
class Dataset:
    """The examples of a job.

    Attributes:
        train: examples of an epoch: with `data.mix` a row may occur several times, or not at all.
        evaluation: held-out examples; empty if `data.test_split_size` is 0 and no file is for evaluation.
        rows: numbers of rows by outcome.
        warnings: messages for the provider; none quotes a row.
        mix: counts of each data set by its pattern in `data.mix`; empty without it.
    """

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    rows: RowCounts
    warnings: tuple[str, ...]
    mix: Mapping[str, SetCounts] = field(default_factory=dict)


def row_schema(data: DataSection) -> RowSchema:
    """Returns how the objects of the files become rows, according to the job spec."""
    return RowSchema(
        data.format.value,
        data.columns,
        frozenset(data.ignore_columns),
        frozenset(data.ignore_message_keys),
        data.eval_files,
    )


def build_dataset(
    rows: Iterable[Row | DataError],
    tokens: ModelTokenizer,
    data: DataSection,
    *,
    split_key: bytes,
    method: MethodName = "sft",
    context_length: int | None = None,
    draw: TaskDraw | None = None,
) -> Dataset:
    """Encodes every row, and holds out the rows of evaluation files or a fraction of all rows.

    With a method that learns from pairs each row gives two examples: the chosen answer, then the rejected answer.
    No row is kept: the rows may be read from their files while they are encoded.

    Args:
        rows: the rows of all files, or the errors that refuse them.
        tokens: tokenizer and chat template.
        data: how rows become examples, and which are held out.
        split_key: decides which rows are held out, where no file does, and which ones `data.mix` draws.
        method: what is learned from a row.
        context_length: positions that the base model was made for; None if its configuration does not say.
        draw: draws from the held-out rows, for task metrics.

    Raises:
        DataError: the first row that cannot be read or is not trainable; no row is left to train on; or no file
            is for evaluation although the job spec names some.
    """
    summarizer = RowSummarizer(tokens, data, split_key)
    outcomes = RowOutcomes(
        data,
        split_key,
        has_template=tokens.has_template,
        method=method,
        context_length=context_length,
    )
    kept: list[tuple[Example, ...]] = []
    for outcome in encode_rows(trainable_rows(rows, tokens, method), tokens, data):
        if isinstance(outcome, DataError):
            raise outcome
        summary = summarizer.summarize(outcome)
        outcomes.add(summary)
        if draw is not None:
            draw.add(outcome.row, summary, outcomes)
        if outcome.examples:
            kept.append(outcome.examples)
    check_evaluation_files(outcomes.file_numbers, data)
    check_mix(outcomes.files, data)
    outcomes.require_training_rows()
    sides: tuple[list[tuple[Example, ...]], list[tuple[Example, ...]]] = ([], [])
    for one, held in zip(kept, outcomes.held_out, strict=True):
        sides[held].append(one)
    train, evaluation = sides
    mix = outcomes.mix()
    counts = RowCounts(
        len(train) - mix.undrawn,
        len(evaluation),
        outcomes.dropped,
        outcomes.truncated,
        dict(outcomes.unrendered),
        mix.undrawn if data.mix else None,
    )
    used = (one for one, uses in zip(train, mix.uses, strict=True) for _ in range(uses))
    warnings = (*tokens.notes, *outcomes.warnings(), *mix.warnings())
    return Dataset(tuple(chain(*used)), tuple(chain(*evaluation)), counts, warnings, mix.sets)


def trainable_rows(
    rows: Iterable[Row | DataError], tokens: ModelTokenizer, method: MethodName
) -> Iterator[Row | DataError]:
    """Yields the rows, with the errors of those that the model cannot be trained on in their place."""
    for row in rows:
        try:
            if not isinstance(row, DataError):
                check_trainable(row, tokens, method)
        except DataError as error:
            yield error
        else:
            yield row


def check_trainable(row: Row, tokens: ModelTokenizer, method: MethodName) -> None:
    """Requires that a model can be trained on a row with a `train.method`.

    Raises:
        DataError: the method takes other rows, the model has no chat template, or it reads no such arguments.
    """
    check_kind(row, method)
    side = row.answer_row
    if isinstance(side, ChatRow) and not tokens.has_template:
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "the base model has no chat template",
            field="messages",
            expected="prompt and completion, or text",
            found="messages",
            hint="list chat_template.jinja in model.model_file_sha256, or write one into data.chat_template",
        )
    unread = tokens.template.unread(side.template_arguments) if isinstance(side, ChatRow) else ()
    if unread:
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "the chat template does not read all arguments of the row",
            field="chat_template_kwargs",
            expected=f"no others than {', '.join(sorted(tokens.template.variables)) or 'none'}",
            found=f"{len(unread)} others",
            hint="leave the column out with data.ignore_columns",
        )


def check_kind(row: Row, method: MethodName) -> None:
    """Requires a row of a kind that a `train.method` learns from.

    Raises:
        DataError: the row is of another kind.
    """
    wanted: LearnedRows = METHOD_RULES[method].learns_from
    found: LearnedRows = "pairs" if isinstance(row, PreferenceRow) else "answers"
    if isinstance(row, UnpairedPreferenceRow):
        found = "labels"
    if wanted == found:
        return
    raise row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        f"train.method {method} does not train on this kind of row",
        field=row.main_field,
        expected=_LEARNED_ROWS[wanted],
        found=row.kind_name,
        hint=f"set train.method to {_USUAL_METHODS[found]}, or leave these rows out",
    )


_LEARNED_ROWS: Final[Mapping[LearnedRows, str]] = {
    "answers": "messages, prompt and completion, or text",
    "pairs": "chosen and rejected",
    "labels": "prompt, completion and label",
}
_USUAL_METHODS: Final[Mapping[LearnedRows, MethodName]] = {
    "answers": "sft",
    "pairs": "dpo",
    "labels": "kto",
}
