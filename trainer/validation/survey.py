"""One pass over a dataset that reads and encodes every row as the job does, and stores numbers only.

Memory grows with the number of rows (about 100 bytes each), not with their length.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.example_set import (
    check_kind,
    check_trainable,
    is_for_evaluation,
    require_training_rows,
    row_schema,
    writes_special,
)
from trainer.data.examples.held_out import is_held_out, row_digest, seed_split_key
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.rows import PreferenceRow, Row, scan_rows, too_many_rows
from trainer.errors import DataError
from trainer.spec import JobSpec
from trainer.validation.pair_survey import PairLengths

SHOWN_PROBLEMS: Final = 20

Advance = Callable[[int], None]
"""Receives the number of bytes that were read since its last call."""


@dataclass
class AcceptedRows:
    """Digest, number of examples, number of tokens and held-out flags of each row that gives examples.

    A pair counts as one example, because a batch counts pairs.
    """

    digests: array[int] = field(default_factory=lambda: array("Q"))
    examples: array[int] = field(default_factory=lambda: array("I"))
    tokens: array[int] = field(default_factory=lambda: array("I"))
    by_file: bytearray = field(default_factory=bytearray)
    by_hash: bytearray = field(default_factory=bytearray)

    def add(
        self, examples: tuple[Example, ...], spec: JobSpec, key: bytes, *, by_file: bool, paired: bool
    ) -> None:
        """Adds a row."""
        digest = row_digest(examples)
        # 64 bits: among ten million rows a collision has a probability of about 3e-6, and makes a count wrong by
        # one.
        self.digests.append(int.from_bytes(digest[:8], "big"))
        self.by_hash.append(is_held_out(digest, spec.data.test_split_size, key))
        self.examples.append(1 if paired else len(examples))
        self.tokens.append(sum(example.length for example in examples))
        self.by_file.append(by_file)


@dataclass
class Survey:
    """Counts and lengths of a dataset, without any of its text.

    Attributes:
        rows: file → kind → number of rows that can be read.
        problems: errors of the first `SHOWN_PROBLEMS` refused rows.
        refused: error code → number of rows.
        shown: the encoded row to display.
        lengths: tokens of each example, as the job will train on them.
        pairs: the lengths of preference rows by part.
        targets: number of trained tokens of each example.
        tokens: number of tokens of all rows before `data.max_length` applies.
        lost: number of trained tokens among them that are dropped or cut.
        truncated: number of rows that were cut.
        dropped: number of rows that were dropped.
        endless: number of examples without a trained end of turn; a model trained on them may not stop.
        special: number of rows that contain the text of a special token.
        duplicates: number of rows whose tokens equal those of an earlier row.
        by_files: whether a row is in a file for evaluation, so that the files decide which rows are held out.
        parts: sizes of training and evaluation; None before the pass has ended.
        kept: the rows that give examples.
    """

    rows: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    problems: list[DataError] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    shown: EncodedRow | None = None
    lengths: array[int] = field(default_factory=lambda: array("i"))
    pairs: PairLengths = field(default_factory=PairLengths)
    targets: array[int] = field(default_factory=lambda: array("i"))
    tokens: int = 0
    lost: int = 0
    truncated: int = 0
    dropped: int = 0
    endless: int = 0
    special: int = 0
    duplicates: int = 0
    by_files: bool = False
    parts: Parts | None = None
    kept: AcceptedRows = field(default_factory=AcceptedRows)

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(self.targets)

    @property
    def kinds(self) -> Counter[str]:
        """Number of readable rows by kind."""
        return sum(self.rows.values(), Counter())

    @property
    def first_problem(self) -> DataError | None:
        """The first row that was refused."""
        return self.problems[0] if self.problems else None


@dataclass(frozen=True)
class Parts:
    """Sizes of training and evaluation.

    Attributes:
        train: number of training rows.
        evaluation: number of held-out rows.
        examples: number of training examples; a pair counts once. More than rows if turns are split.
        tokens: number of tokens of the training examples.
        overlap: number of held-out rows whose tokens equal those of a training row; their loss is too optimistic.
        exact: whether the job's split is this one; else its sizes are about these.
    """

    train: int
    evaluation: int
    examples: int
    tokens: int
    overlap: int
    exact: bool


def survey(
    files: Mapping[str, Path],
    spec: JobSpec,
    tokens: ModelTokenizer | None,
    *,
    example: int = 0,
    advance: Advance = lambda _bytes: None,
) -> Survey:
    """Reads and encodes every row; a refused row is counted and does not end the pass.

    Args:
        files: name relative to `data/` → file.
        spec: the job.
        tokens: the base model's tokenizer; None reads the rows without encoding them.
        example: index over all files of the row to display.
        advance: called while files are read.
    """
    found = Survey()
    rows = _readable_rows(found, files, spec, advance)
    method = spec.train.method
    if tokens is None:
        for _ in _accepted_rows(found, rows, lambda row: check_kind(row, method)):
            pass
        return found
    trainable = _accepted_rows(found, rows, lambda row: check_trainable(row, tokens, method))
    for number, encoded in enumerate(encode_rows(trainable, tokens, spec.data)):
        if isinstance(encoded, DataError):
            _count_refusal(found, encoded)
        else:
            _count_examples(found, encoded, tokens, spec)
            if found.shown is None and number >= example and encoded.examples:
                found.shown = encoded
    _count_parts(found, spec)
    return found


def _readable_rows(found: Survey, files: Mapping[str, Path], spec: JobSpec, advance: Advance) -> Iterator[Row]:
    shape, most, count = row_schema(spec.data), spec.data.max_rows, 0
    for name in sorted(files):
        for row in scan_rows(files[name], name=name, schema=shape, on_bytes_read=advance):
            if isinstance(row, DataError):
                _count_refusal(found, row)
                continue
            if count == most:
                _count_refusal(found, too_many_rows(row, most))
                return
            count += 1
            found.rows[name][row.kind_name] += 1
            yield row


def _accepted_rows(found: Survey, rows: Iterable[Row], check: Callable[[Row], None]) -> Iterator[Row]:
    for row in rows:
        try:
            check(row)
        except DataError as error:
            _count_refusal(found, error)
        else:
            yield row


def _count_refusal(found: Survey, error: DataError) -> None:
    found.refused[error.code.value] += 1
    if len(found.problems) < SHOWN_PROBLEMS:
        found.problems.append(error)


def _count_examples(found: Survey, encoded: EncodedRow, tokens: ModelTokenizer, spec: JobSpec) -> None:
    found.tokens += encoded.tokens
    found.lost += encoded.lost
    found.truncated += encoded.truncated
    found.special += writes_special(encoded.row, tokens.special_texts)
    by_file = is_for_evaluation(encoded.row.file, spec.data)
    found.by_files |= by_file  # also where the row is dropped
    if not encoded.examples:
        found.dropped += 1
        return
    for example in encoded.examples:
        found.lengths.append(example.length)
        found.targets.append(example.targets)
        found.endless += not example.stops
    paired = isinstance(encoded.row, PreferenceRow)
    if paired:
        found.pairs.add(encoded.preference())
    found.kept.add(encoded.examples, spec, seed_split_key(spec.train.seed), by_file=by_file, paired=paired)


def _count_parts(found: Survey, spec: JobSpec) -> None:
    """Splits the rows as the job will, and counts duplicates and overlap.

    The split of a job with a section `privacy` follows from a secret that does not exist yet: its sizes are then
    those of another key, which differ by chance.
    """
    kept = found.kept
    held = kept.by_file if found.by_files else kept.by_hash
    numbers = range(len(held))
    train = [number for number in numbers if not held[number]]
    evaluation = [number for number in numbers if held[number]]
    if numbers:
        try:
            require_training_rows(len(held), len(evaluation), spec.data, by_files=found.by_files)
        except DataError as error:
            _count_refusal(found, error)
    seen = {kept.digests[number] for number in train}
    overlap = sum(kept.digests[number] in seen for number in evaluation)
    seen.update(kept.digests[number] for number in evaluation)
    found.duplicates = len(numbers) - len(seen)
    found.parts = Parts(
        train=len(train),
        evaluation=len(evaluation),
        examples=sum(kept.examples[number] for number in train),
        tokens=sum(kept.tokens[number] for number in train),
        overlap=overlap,
        exact=found.by_files or not spec.privacy.enabled or not spec.data.test_split_size,
    )


def estimated_steps(parts: Parts, spec: JobSpec) -> int:
    """Returns the number of optimizer steps: exact without packing; with packing a lower bound (full bins).

    A packed micro-batch holds `per_device_train_batch_size` bins of `max_length` tokens. `num_processes: auto`
    counts as one GPU, because the provider's machine cannot see the number of GPUs in the VM.
    """
    if spec.train.max_steps > 0:
        return spec.train.max_steps
    sequences = math.ceil(parts.tokens / spec.data.max_length) if spec.data.packing else parts.examples
    batches = math.ceil(sequences / spec.train.per_device_train_batch_size)
    processes = 1 if spec.train.num_processes == "auto" else spec.train.num_processes
    steps = math.ceil(batches / (spec.train.gradient_accumulation_steps * processes))
    # The last, incomplete batch of an epoch is a step too, hence ceil at every level.
    return max(1, math.ceil(spec.train.num_train_epochs * steps))
