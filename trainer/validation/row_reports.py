"""What became of each row of a dataset, in numbers: made where rows are encoded, counted by `survey`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from trainer.data.examples.example import EncodedRow
from trainer.data.examples.example_set import check_kind, row_schema, trainable_rows
from trainer.data.examples.held_out import seed_split_key
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.examples.row_summary import RowSummarizer, RowSummary
from trainer.data.examples.task_draw import can_be_held_out
from trainer.data.examples.tokenizer_thread import TokenizerThread
from trainer.data.rows import PreferenceRow, RawRow, Row, RowFile, RowLocation, parse_raw_rows
from trainer.errors import DataError, JobError
from trainer.spec import JobSpec
from trainer.validation.pair_survey import PairLength


def as_local_refusal(error: JobError) -> DataError:
    """Returns the error with which this machine refuses what the job would fail with."""
    if isinstance(error, DataError):
        return error
    return DataError(
        error.code, error.message, expected=error.expected, found=error.found, hint=error.hint
    )


class ReadRow(NamedTuple):
    """A row that could be read.

    Attributes:
        file: name of its file, relative to `data/`.
        row: its index in the file.
        kind: name of its kind.
    """

    file: str
    row: int
    kind: str

    def location(self) -> RowLocation:
        """Returns where the row is."""
        return RowLocation(self.file, self.row)


class EncodedNumbers(NamedTuple):
    """What encoding made of a row.

    Attributes:
        summary: what the job counts, too.
        targets: number of trained tokens of each example.
        tokens: number of tokens before `data.max_length` applies.
        lost: number of trained tokens among them that are dropped or cut.
        pair: lengths of a pair; None for other rows.
    """

    summary: RowSummary
    targets: tuple[int, ...]
    tokens: int
    lost: int
    pair: PairLength | None


class RowReport(NamedTuple):
    """What became of a row.

    Attributes:
        read: None if the row could not be read.
        refusal: why the row is refused; None if it is not.
        numbers: what encoding made of it; None if it is refused, or there is no tokenizer.
        encoded: the row itself, where it may be needed: the first one of a chunk, one to display, and those that
            task metrics may judge.
        can_be_shown: whether it may be displayed.
    """

    read: ReadRow | None
    refusal: DataError | None = None
    numbers: EncodedNumbers | None = None
    encoded: EncodedRow | None = None
    can_be_shown: bool = False


class RowReporter:
    """Parses and encodes rows as the job does.

    Args:
        spec: the job.
        tokens: the base model's tokenizer; None reads rows without encoding them.
        example: index over all rows of the first one that may be displayed.
    """

    def __init__(self, spec: JobSpec, tokens: ModelTokenizer | None, *, example: int) -> None:
        self._spec = spec
        self._tokens = tokens
        self._example = example
        self._schema = row_schema(spec.data)
        if tokens is not None:
            self._summarizer = RowSummarizer(tokens, spec.data, seed_split_key(spec.train.seed))

    def report(
        self,
        file: RowFile,
        raw_rows: Iterable[RawRow],
        *,
        first: int,
        number: int,
        thread: TokenizerThread,
    ) -> Iterator[RowReport]:
        """Yields what became of each row.

        Args:
            file: the file of the rows.
            raw_rows: rows that follow each other.
            first: index in the file of the first of them.
            number: its index over all rows.
            thread: calls the tokenizer.
        """
        read: deque[ReadRow | None] = deque()
        rows = _note_rows(parse_raw_rows(file, raw_rows, self._schema, first=first), read)
        is_first, is_shown = True, False
        for here, outcome in enumerate(self._encode(rows, thread), number):
            row = read.popleft()
            if isinstance(outcome, DataError):
                yield RowReport(row, outcome)
            elif outcome is None:
                yield RowReport(row)
            else:
                try:
                    numbers = self._count(outcome)
                except JobError as error:
                    yield RowReport(row, as_local_refusal(error))
                    continue
                can_be_shown = not is_shown and here >= self._example and bool(outcome.examples)
                may_be_judged = bool(self._spec.evaluation.metrics) and can_be_held_out(
                    numbers.summary
                )
                is_kept = is_first or can_be_shown or may_be_judged
                is_first, is_shown = False, is_shown or can_be_shown
                yield RowReport(
                    row,
                    numbers=numbers,
                    encoded=outcome if is_kept else None,
                    can_be_shown=can_be_shown,
                )

    def _encode(
        self, rows: Iterable[Row | DataError], thread: TokenizerThread
    ) -> Iterator[EncodedRow | DataError | None]:
        method = self._spec.train.method
        if self._tokens is not None:
            rows = trainable_rows(rows, self._tokens, method)
            yield from encode_rows(rows, self._tokens, self._spec.data, thread)
            return
        for row in rows:
            try:
                if isinstance(row, DataError):
                    raise row
                check_kind(row, method)
            except DataError as error:
                yield error
            else:
                yield None

    def _count(self, encoded: EncodedRow) -> EncodedNumbers:
        is_pair = bool(encoded.examples) and isinstance(encoded.row, PreferenceRow)
        return EncodedNumbers(
            self._summarizer.summarize(encoded),
            tuple(example.targets for example in encoded.examples),
            encoded.tokens,
            encoded.lost,
            PairLength.of(encoded.preference()) if is_pair else None,
        )


def _note_rows(
    rows: Iterable[Row | DataError], read: deque[ReadRow | None]
) -> Iterator[Row | DataError]:
    for row in rows:
        read.append(
            None if isinstance(row, DataError) else ReadRow(row.file, row.index, row.kind_name)
        )
        yield row
