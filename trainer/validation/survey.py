"""One pass over a dataset that reads and encodes every row as the job does, and stores numbers only.

Rows are encoded by several processes (`row_processes`) and counted by this one, in their order. Memory grows with
the number of rows (about 100 bytes each), not with their length; besides, it holds the rows that task metrics
judge, `evaluation.max_rows` of them at most.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Any

from trainer.data.examples.evaluation_files import check_evaluation_files, split_file_warnings
from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.held_out import evaluated_warnings, seed_split_key
from trainer.data.examples.mixing import Mix, check_mix
from trainer.data.examples.model_config import check_architecture, context_length
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.privacy_rows import (
    canaries_added,
    require_audit_rows,
    require_rows_for_delta,
)
from trainer.data.examples.row_outcomes import RowOutcomes, SplitSizes, require_evaluation_rows
from trainer.data.examples.task_draw import TaskDraw
from trainer.data.examples.task_rows import read_tasks
from trainer.data.rows import Row, RowFile, list_row_files, too_many_rows
from trainer.errors import DataError, JobError
from trainer.spec import METHOD_RULES, JobSpec, LearningRatePath, check_schedule, learning_rate_path
from trainer.training.privacy.canaries import canary_examples
from trainer.training.step_count import count_steps
from trainer.validation.pair_survey import PairLengths
from trainer.validation.refusals import Refusals
from trainer.validation.row_processes import choose_processes, open_reports
from trainer.validation.row_reports import EncodedNumbers, RowReport, RowReporter, as_local_refusal
from trainer.validation.task_counts import TaskCounts

Advance = Callable[[int], None]
"""Receives the number of bytes that were read since its last call."""


@dataclass
class Survey:
    """Counts and lengths of a dataset, without any of its text.

    Attributes:
        rows: file → kind → number of rows that can be read.
        side_files: names of the files that hold no rows and say what the others are.
        refusals: what is refused, of rows and of what is not in one row.
        shown: the encoded row to display.
        lengths: tokens of each example, as the job will train on them.
        pairs: the lengths of preference rows by part.
        targets: number of trained tokens of each example.
        tokens: number of tokens of all rows before `data.max_length` applies.
        lost: number of trained tokens among them that are dropped or cut.
        outcomes: what became of the rows; None without a tokenizer.
        sizes: sizes of training and evaluation; None before the pass has ended.
        exact: whether the job's split is this one; else its sizes are about these.
        mix: how often an epoch uses the training rows; None as `sizes`, and where it was refused.
        steps: number of optimizer steps; None before the pass has ended, or without a training row.
        rates: the learning rates of these steps.
        task: the rows that task metrics judge, in numbers; None as `sizes`, without `evaluation.metrics`, or where
            none can be judged.
        warnings: what the job would warn of.
    """

    rows: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    side_files: tuple[str, ...] = ()
    refusals: Refusals = field(default_factory=Refusals)
    shown: EncodedRow | None = None
    lengths: array[int] = field(default_factory=lambda: array("i"))
    pairs: PairLengths = field(default_factory=PairLengths)
    targets: array[int] = field(default_factory=lambda: array("i"))
    tokens: int = 0
    lost: int = 0
    outcomes: RowOutcomes | None = None
    sizes: SplitSizes | None = None
    exact: bool = True
    mix: Mix | None = None
    steps: int | None = None
    rates: LearningRatePath | None = None
    task: TaskCounts | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def examples(self) -> int:
        """Number of examples; a pair counts once."""
        return len(self.lengths) // (2 if self.pairs.prompt else 1)

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
        """The first refusal."""
        return self.refusals.groups[0].first if self.refusals.groups else None


def survey(
    files: Mapping[str, Path],
    spec: JobSpec,
    tokens: ModelTokenizer | None,
    config: Mapping[str, Any] | None = None,
    *,
    example: int = 0,
    advance: Advance = lambda _bytes: None,
    processes: int | None = None,
) -> Survey:
    """Reads and encodes every row; a refusal is counted and does not end the pass.

    Args:
        files: name relative to `data/` → file.
        spec: the job.
        tokens: the base model's tokenizer; None reads the rows without encoding them.
        config: the base model's config.json; None judges nothing by it.
        example: index over all files of the row to display.
        advance: called while files are read.
        processes: number of processes that encode rows, which changes no result; None chooses it by their size.

    Raises:
        UnavailableError: one of the processes was ended.
    """
    found = Survey()
    row_files: list[RowFile] = []
    with _counting_refusals(found):
        row_files = list_row_files(files, eval_files=spec.data.eval_files)
        found.side_files = tuple(sorted(files.keys() - {file.name for file in row_files}))
        if not spec.exchange.joint:  # patterns are those of all providers' files
            check_evaluation_files([file.name for file in row_files], spec.data)
    trained = [file.name for file in row_files if not file.for_evaluation]
    with _counting_refusals(found):
        if not spec.exchange.joint:
            check_mix(trained, spec.data)
    if config is not None:
        with _counting_refusals(found):
            check_architecture(config, spec)
    reporter = RowReporter(spec, tokens, example=example)
    if tokens is None:
        processes = 1
    elif processes is None:
        processes = choose_processes([file.path for file in row_files])
    with open_reports(row_files, reporter, processes, advance) as reports:
        # Later than the processes are forked: from here on the progress on a terminal has a thread.
        advance(sum(files[name].stat().st_size for name in found.side_files))
        rows = _count_rows(found, reports, spec.data.max_rows)
        if tokens is None:
            for _ in rows:
                pass
            found.warnings += split_file_warnings(trained, spec.data)
            return found
        _judge_rows(found, rows, spec, tokens, config)
    return found


def _judge_rows(
    found: Survey,
    rows: Iterator[RowReport],
    spec: JobSpec,
    tokens: ModelTokenizer,
    config: Mapping[str, Any] | None,
) -> None:
    context = None if config is None else context_length(config)
    outcomes = RowOutcomes(
        spec.data,
        seed_split_key(spec.train.seed),
        has_template=tokens.has_template,
        method=spec.train.method,
        context_length=context,
    )
    first: Row | None = None
    draw = TaskDraw(spec.evaluation.max_rows, seed=spec.train.seed)
    for report in rows:
        if report.numbers is None:
            continue
        outcomes.add(report.numbers.summary)
        _count_examples(found, report.numbers)
        encoded = report.encoded
        if spec.evaluation.metrics:
            draw.add(encoded.row if encoded else None, report.numbers.summary, outcomes)
        if encoded is not None:
            first = first or encoded.row
            if found.shown is None and report.can_be_shown:
                found.shown = encoded
    canaries: tuple[Example, ...] = ()
    if first is not None and spec.privacy.canaries:
        with _counting_refusals(found):
            # Others than the job's, which nobody may know.
            canaries, _ = canary_examples(first, spec.privacy, tokens, spec.data, SystemRandom())
    _judge_run(found, outcomes, spec, [example.length for example in canaries])
    if spec.evaluation.metrics and outcomes.rows:
        try:
            found.task = TaskCounts.of(read_tasks(draw, tokens, spec, context_length=context))
        except DataError as error:
            _count_or_announce(found, error)


@contextmanager
def _counting_refusals(found: Survey) -> Iterator[None]:
    """Counts the error that a judgement raises as a refusal: validation goes on."""
    try:
        yield
    except JobError as error:
        found.refusals.add(as_local_refusal(error))


def _count_rows(found: Survey, reports: Iterable[RowReport], most: int) -> Iterator[RowReport]:
    """Counts rows by kind, and refusals; yields the reports of rows that are not refused."""
    count = 0
    for report in reports:
        if report.read is not None:
            if count == most:
                found.refusals.add(too_many_rows(report.read.location(), most))
                return
            count += 1
            found.rows[report.read.file][report.read.kind] += 1
        if report.refusal is not None:
            found.refusals.add(report.refusal)
        else:
            yield report


def _count_examples(found: Survey, numbers: EncodedNumbers) -> None:
    found.tokens += numbers.tokens
    found.lost += numbers.lost
    found.targets.extend(numbers.targets)
    if numbers.summary.examples is not None:
        found.lengths.extend(numbers.summary.examples.lengths)
    if numbers.pair is not None:
        found.pairs.add(numbers.pair)


def _judge_run(found: Survey, outcomes: RowOutcomes, spec: JobSpec, canaries: list[int]) -> None:
    """Splits the rows as the job will, and judges what follows from their number.

    The split of a job with a section `privacy` follows from a secret that does not exist yet: its sizes are then
    those of another key, which differ by chance.
    """
    found.outcomes = outcomes
    found.sizes = sizes = outcomes.sizes()
    is_keyed = (
        spec.data.test_split_size > 0 and not outcomes.by_files and len(outcomes.held_out) > 0
    )
    found.exact = not (is_keyed and spec.privacy.enabled)
    found.warnings += outcomes.warnings()
    held_out = sum(not trained for trained in outcomes.is_trained_on())
    units = held_out // METHOD_RULES[spec.train.method].examples_per_row
    found.warnings += evaluated_warnings(units, spec.train.max_eval_rows)
    if outcomes.rows and found.exact:
        with _counting_refusals(found):
            outcomes.require_training_rows()
        with _counting_refusals(found):
            if not spec.exchange.joint:  # another provider's rows may be held out
                require_evaluation_rows(sizes.evaluation, spec.train)
    if spec.privacy.enabled and (sizes.train or not found.exact):
        _judge_privacy(found, outcomes, sizes, spec)
    if not sizes.train:
        return
    with _counting_refusals(found):
        found.mix = mix = outcomes.mix()
    if found.mix is None:
        return
    found.warnings += mix.warnings()
    if canaries:
        found.warnings.append(canaries_added(spec.privacy))
    trained = [
        length
        for length, uses in zip(found.lengths, outcomes.uses(mix), strict=True)
        for _ in range(uses)
    ]
    trained += canaries * spec.privacy.canary_repetitions
    # `num_processes: auto` counts as one GPU, because this machine cannot see how many there are in the VM.
    processes = 1 if spec.train.num_processes == "auto" else spec.train.num_processes
    found.steps = steps = count_steps(spec, trained, processes)
    found.rates = learning_rate_path(spec.train, steps)
    with _counting_refusals(found):
        found.warnings += check_schedule(spec.train, steps)


def _judge_privacy(found: Survey, outcomes: RowOutcomes, sizes: SplitSizes, spec: JobSpec) -> None:
    """Counts as a refusal, or announces, that section `privacy` needs other numbers of rows."""
    privacy, members, outsiders = spec.privacy, sizes.examples, outcomes.count_outsiders()
    if not found.exact:
        # Expected values over all keys. Equal rows are held out together, so that no copy is on the other side.
        outsiders = round(spec.data.test_split_size * found.examples)
        members = found.examples - outsiders
    try:
        if privacy.audit:
            require_audit_rows(members, outsiders, privacy)
        if privacy.target_delta is not None:
            canaries = privacy.canaries * privacy.canary_repetitions
            require_rows_for_delta(members + canaries, privacy.target_delta)
    except DataError as error:
        _count_or_announce(found, error)


def _count_or_announce(found: Survey, error: DataError) -> None:
    """Counts a refusal that follows from the split, or warns of it where the job will split otherwise."""
    if found.exact:
        found.refusals.add(error)
    else:
        found.warnings.append(
            f"the job splits by a secret and will probably refuse these rows: {error}"
        )
