"""What became of the rows of a dataset, in numbers, and what follows: the split, refusals and warnings.

The job and `trainer validate` give the summary of every encoded row to a `RowOutcomes`, so that both refuse and
warn alike. It has about 50 bytes a row, whatever the row's length, and none of its text.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

from trainer.data.examples.evaluation_files import split_file_warnings
from trainer.data.examples.mixing import Mix, mix_rows
from trainer.data.examples.row_remarks import RowRemarks
from trainer.data.examples.row_summary import NO_PROMPT, RowSummary
from trainer.errors import DataError, ErrorCode
from trainer.spec import METHOD_RULES, DataSection, MethodName, TrainSection


@dataclass(frozen=True)
class SplitSizes:
    """Sizes of training and evaluation.

    Attributes:
        train: number of training rows.
        evaluation: number of held-out rows.
        examples: number of training examples; a pair counts once. More than rows if turns are split.
        tokens: number of tokens of the training examples.
        overlap: number of held-out rows whose tokens equal those of a training row.
        shared_prompts: number of other held-out rows whose prompt a training row has too, with another answer.
    """

    train: int
    evaluation: int
    examples: int
    tokens: int
    overlap: int
    shared_prompts: int


class RowOutcomes:
    """Counts what encoding made of each row.

    Args:
        data: how rows become examples, and which are held out.
        split_key: decides which ones `data.mix` draws.
        has_template: whether the base model has a chat template.
        method: what is learned from a row.
        context_length: positions that the base model was made for; None if its configuration does not say.

    Attributes:
        rows: number of rows.
        dropped: number of rows that gave no example.
        truncated: number of rows that were cut.
        special: number of rows that contain the text of a special token.
        unrendered: part of a conversation → number of rows that the chat template prints without it.
        beyond_context: number of rows with more tokens than `context_length`.
        by_files: whether any row, also a dropped one, is in a file for evaluation: then the files decide.
        file_numbers: name of each file that a row is from → its number.
        files: names of these files, without those of splits for evaluation.
        remarks: what else the provider should know of the rows.
        labels: label → number of answers that have it.
    """

    def __init__(
        self,
        data: DataSection,
        split_key: bytes,
        *,
        has_template: bool,
        method: MethodName = "sft",
        context_length: int | None = None,
    ) -> None:
        self.rows = self.dropped = self.truncated = self.special = self.beyond_context = 0
        self.unrendered: Counter[str] = Counter()
        self.by_files = False
        self.files: dict[str, None] = {}
        self.remarks = RowRemarks(has_template=has_template)
        self.labels: Counter[bool] = Counter()
        self.file_numbers: dict[str, int] = {}
        self._data = data
        self._split_key = split_key
        self._examples_per_row = METHOD_RULES[method].examples_per_row
        self._context_length = context_length
        # One entry for each row that gives examples.
        self._digests, self._prompts = array("Q"), array("Q")
        self._example_digests = array("Q")  # one for each example, row after row
        self._in_evaluation_file, self._held_by_hash = bytearray(), bytearray()
        self._examples, self._tokens, self._files = array("I"), array("Q"), array("I")
        self._endless, self._cut = array("I"), array("I")

    def add(self, row: RowSummary) -> None:
        """Counts a row."""
        self.rows += 1
        self.special += row.special
        self.unrendered.update(row.unrendered)
        self.remarks.add(row)
        if not row.is_split_for_evaluation:
            self.files[row.file] = None
        file_number = self.file_numbers.setdefault(row.file, len(self.file_numbers))
        # Also where the row is dropped: whether the files decide must not depend on a single row's length.
        self.by_files |= row.in_evaluation_file
        examples = row.examples
        if examples is None:
            self.dropped += 1
            return
        self.truncated += examples.cut > 0
        if self._context_length is not None:
            self.beyond_context += max(examples.lengths) > self._context_length
        self._digests.append(examples.digest)
        self._example_digests.extend(examples.digests)
        self._prompts.append(examples.prompt)
        self._in_evaluation_file.append(row.in_evaluation_file)
        self._held_by_hash.append(examples.held_by_hash)
        self._files.append(file_number)
        self.labels.update(examples.labels)
        self._examples.append(len(examples.lengths))
        self._tokens.append(sum(examples.lengths))
        self._endless.append(examples.endless)
        self._cut.append(examples.cut)

    @property
    def held_out(self) -> Sequence[int]:
        """One flag for each row that gives examples, in order: whether it is held out."""
        return self._in_evaluation_file if self.by_files else self._held_by_hash

    def mix(self) -> Mix:
        """Returns how often an epoch uses each training row.

        Raises:
            DataError: `DATASET_NOT_TRAINABLE`: a weight of `data.mix` draws no row.
        """
        names = list(self.file_numbers)
        train, _ = self._sides()
        return mix_rows([names[self._files[row]] for row in train], self._data, key=self._split_key)

    def is_trained_on(self) -> Iterator[bool]:
        """Yields one flag for each example, in order: whether it is trained on, as far as `data.mix` draws it."""
        for held, examples in zip(self.held_out, self._examples, strict=True):
            yield from [not held] * examples

    def uses(self, mix: Mix) -> Iterator[int]:
        """Yields for each example, in order, how often an epoch uses it: 0 if it is held out."""
        uses = iter(mix.uses)
        for held, examples in zip(self.held_out, self._examples, strict=True):
            yield from [0 if held else next(uses)] * examples

    @property
    def duplicates(self) -> int:
        """Number of rows whose tokens equal those of an earlier row."""
        return len(self._digests) - len(set(self._digests))

    def count_outsiders(self) -> int:
        """Returns the number of held-out examples that are no copies of training examples."""
        flags = list(self.is_trained_on())
        trained = set(compress(self._example_digests, flags))
        held = compress(self._example_digests, (not flag for flag in flags))
        return sum(digest not in trained for digest in held)

    def sizes(self) -> SplitSizes:
        """Returns the sizes of training and evaluation."""
        train, held = self._sides()
        digests = {self._digests[number] for number in train}
        prompts = {self._prompts[number] for number in train} - {NO_PROMPT}
        fresh = [number for number in held if self._digests[number] not in digests]
        return SplitSizes(
            train=len(train),
            evaluation=len(held),
            examples=sum(self._examples[number] for number in train) // self._examples_per_row,
            tokens=sum(self._tokens[number] for number in train),
            overlap=len(held) - len(fresh),
            shared_prompts=sum(self._prompts[number] in prompts for number in fresh),
        )

    def require_training_rows(self) -> None:
        """Requires that not every row is held out or dropped.

        Raises:
            DataError: `DATASET_NOT_TRAINABLE`.
        """
        data, rows, held = self._data, len(self._digests), sum(self.held_out)
        if held < rows:
            return
        reason = (
            "every file is for evaluation (data.eval_files, or its split)"
            if self.by_files
            else "data.test_split_size holds out all"
        )
        raise DataError(
            ErrorCode.DATASET_NOT_TRAINABLE,
            reason if rows else "no rows are left",
            expected="at least one row to train on",
            found=0,
            hint="add rows"
            if self.by_files or not rows
            else f"lower data.test_split_size ({data.test_split_size})",
        )

    def warnings(self) -> Iterator[str]:
        """Yields warnings for the provider; none quotes a row."""
        yield from self._row_warnings()
        yield from self._end_warnings()
        yield from self._split_warnings()

    def _sides(self) -> tuple[list[int], list[int]]:
        sides: tuple[list[int], list[int]] = ([], [])
        for number, held in enumerate(self.held_out):
            sides[held].append(number)
        return sides

    def _row_warnings(self) -> Iterator[str]:
        if self.dropped:
            yield f"{self.dropped} of {self.rows} rows were dropped: too long (data.on_overlong)"
        if self.truncated:
            yield f"{self.truncated} of {self.rows} rows were truncated: their ends are not learned"
        if self.beyond_context:
            yield (
                f"{self.beyond_context} of {self.rows} rows have more than {self._context_length} tokens, for "
                "which the base model has no trained positions: lower data.max_length"
            )
        for part, count in self.unrendered.items():
            yield f"{count} of {self.rows} rows lose their {part}, which the chat template does not print"
        if self.special:
            yield (
                f"{self.special} of {self.rows} rows hold the text of a special token, which is read as that token"
            )
        if len(self.labels) == 1:
            (label,) = self.labels
            yield f"EVERY LABEL IS {str(label).lower()}: nothing tells desirable answers from undesirable ones"
        if self.duplicates:
            yield f"{self.duplicates} of {self.rows} rows repeat another one"
        yield from self.remarks.warnings()

    def _end_warnings(self) -> Iterator[str]:
        # A model that never predicts a stop token does not learn to end an answer. Rows that were cut have lost
        # their end of turn and are reported by number, so only more than those are worth a warning.
        train, _ = self._sides()
        examples = sum(self._examples[number] for number in train)
        endless = sum(self._endless[number] for number in train)
        if examples and endless == examples:
            yield "NO END OF TURN IS EVER TRAINED ON: no trained part has a stop token: stopping is not learned"
        elif endless > sum(self._cut[number] for number in train):
            yield f"{endless} of {examples} examples train on no end of turn"
        extra = sum(self._examples) - self._examples_per_row * len(self._examples)
        if extra:
            yield f"{extra} examples more than rows: turns that the template renders otherwise later are split off"

    def _split_warnings(self) -> Iterator[str]:
        data, sizes = self._data, self.sizes()
        yield from split_file_warnings(self.files, data)
        if sizes.overlap:
            yield (
                f"{sizes.overlap} of {sizes.evaluation} evaluation rows are in the training part too: "
                "the eval loss is too optimistic"
            )
        if sizes.shared_prompts:
            yield (
                f"{sizes.shared_prompts} of {sizes.evaluation} evaluation rows have a prompt that is trained on "
                "with another answer: the eval loss is too optimistic"
            )
        if self.by_files and "test_split_size" in data.model_fields_set and data.test_split_size:
            yield f"data.test_split_size {data.test_split_size} is not applied: there are files for evaluation"
        if sizes.train and not sizes.evaluation and (self.by_files or data.test_split_size):
            reason = (
                "every row of the files for evaluation (data.eval_files, or their split) was dropped"
                if self.by_files
                else f"data.test_split_size {data.test_split_size} of {sizes.train} rows left none"
            )
            yield f"NO ROW IS HELD OUT: {reason}, so no loss is measured on rows that were not trained on"


def require_evaluation_rows(rows: int, train: TrainSection) -> None:
    """Requires held-out rows where the job spec asks for evaluations while it trains.

    Raises:
        DataError: `DATASET_NOT_TRAINABLE`.
    """
    if rows or train.eval_steps is None:
        return
    raise DataError(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "no row is held out",
        expected="held-out rows, for train.eval_steps",
        found=0,
        hint="raise data.test_split_size, add files for evaluation, or leave train.eval_steps out",
    )
