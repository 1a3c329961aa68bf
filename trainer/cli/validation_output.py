"""The report of `trainer validate`: as text, as JSON and as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.text import Text

from trainer.cli.safe_console import SafeConsole
from trainer.cli.terminal_text import show_control_characters
from trainer.data.examples.example import Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.model_files.architecture import architecture_of
from trainer.model_files.start_adapter import CheckedAdapter
from trainer.spec import JobSpec
from trainer.validation.lengths import histogram, quantiles
from trainer.validation.memory import GIB, MemoryEstimate, estimate_memory
from trainer.validation.pair_survey import PairLengths
from trainer.validation.refusals import RefusalGroup
from trainer.validation.survey import Survey

MAX_EXAMPLE_CHARACTERS: Final = 6000
"""Characters of one piece of an example that are shown."""

_BAR_COLUMNS: Final = 40
_LABEL_COLUMNS: Final = 10


@dataclass(frozen=True)
class ValidationReport:
    """What a survey of the dataset found, and what follows from it for the job.

    Attributes:
        spec: the job.
        found: what one pass over the data found.
        tokens: the base model's tokenizer; None if it is not on this machine.
        config: the base model's config.json; None if it is not on this machine.
        unknown: why there is no tokenizer, if there is none.
        targets: name in `lora.lora_target_modules` → number of modules that it selects.
        show_example: whether a row's text may be shown.
        start_adapter: the adapter that training starts from; None for a fresh one.
    """

    spec: JobSpec
    found: Survey
    tokens: ModelTokenizer | None
    config: Mapping[str, Any] | None
    unknown: str
    targets: Mapping[str, int]
    show_example: bool
    start_adapter: CheckedAdapter | None = None

    @property
    def memory(self) -> MemoryEstimate | None:
        """Estimated GPU memory of an optimizer step; None if the layer sizes are not known."""
        widths = architecture_of(self.config) if self.config is not None else None
        if widths is None or not self.found.lengths:
            return None
        # The largest micro-batch: rows are padded to the longest, a pair is two rows, and a bin is full at most.
        batch = self.spec.train.per_device_train_batch_size * (2 if self.found.pairs.prompt else 1)
        longest = self.spec.data.max_length if self.spec.data.packing else max(self.found.lengths)
        most = longest if self.spec.data.packing else max(self.found.targets)
        return estimate_memory(widths, self.spec, tokens=batch * longest, trained=batch * most)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the provider; they quote no row."""
        unknown = (f"tokens were not counted: {self.unknown}",) if self.tokens is None else ()
        return (*unknown, *self.found.warnings)

    def as_json(self) -> dict[str, object]:
        """Returns the report as a JSON object; the example only if it was requested."""
        found, problem, refusals = self.found, self.found.first_problem, self.found.refusals
        document: dict[str, object] = {
            "rows": found.kinds.total(),
            "kinds": dict(found.kinds),
            "files": {name: dict(kinds) for name, kinds in found.rows.items()},
            "side_files": list(found.side_files),
            "refused": {"count": refusals.codes.total(), "codes": dict(refusals.codes)},
            "problems": [_describe_problem(group) for group in refusals.groups],
            "unrendered": {
                "allowed": dict(found.outcomes.unrendered) if found.outcomes else {},
                "refused": dict(refusals.unrendered),
            },
            "tokens": self._describe_tokens() if self.tokens else None,
            "steps": found.steps,
            "learning_rate": asdict(found.rates) if found.rates else None,
            "targets": dict(self.targets),
            "start_adapter": self.start_adapter.as_json() if self.start_adapter else None,
            "providers": list(self.spec.exchange.providers),
            "memory": {**asdict(self.memory), "total": self.memory.total} if self.memory else None,
            "warnings": list(self.warnings),
        }
        if self.show_example and found.shown is not None and self.tokens is not None:
            document["example"] = [
                list(split_by_mask(example, self.tokens)) for example in found.shown.examples
            ]
        if problem is not None:
            document["error"] = {
                "code": problem.code.value,
                "message": problem.message,
                "hint": problem.hint,
            }
            document["exit_code"] = int(problem.exit_code)
        return document

    def _describe_tokens(self) -> dict[str, object]:
        found, outcomes, sizes = self.found, self.found.outcomes, self.found.sizes
        pairs: dict[str, object] | None = None
        if found.pairs.prompt:
            pairs = {"count": len(found.pairs.prompt), "chosen_longer": found.pairs.longer}
            pairs |= {
                name: quantiles(getattr(found.pairs, name))
                for name in ("prompt", "chosen", "rejected")
            }
        return {
            "total": sum(found.lengths),
            "trained": found.trained,
            "lost": found.lost,
            "unlimited": found.tokens,
            "truncated_rows": outcomes.truncated if outcomes else 0,
            "dropped_rows": outcomes.dropped if outcomes else 0,
            "length": quantiles(found.lengths),
            "histogram": histogram(found.lengths),
            "pairs": pairs,
            "labels": {str(label).lower(): count for label, count in outcomes.labels.items()}
            if outcomes
            else {},
            "mix": {name: asdict(counts) for name, counts in found.mix.sets.items()}
            if found.mix
            else {},
            "duplicate_rows": outcomes.duplicates if outcomes else 0,
            "beyond_context_rows": outcomes.beyond_context if outcomes else 0,
            "split": {**asdict(sizes), "exact": found.exact} if sizes else None,
            "task": asdict(found.task) if found.task else None,
        }


def _describe_problem(group: RefusalGroup) -> dict[str, object]:
    error = group.first
    return {
        "code": error.code.value,
        "file": error.file,
        "row": error.row,
        "rows": group.rows,
        "count": group.count,
        "field": error.field,
        "reason": error.reason,
        "expected": None if error.expected is None else str(error.expected),
        "found": None if error.found is None else str(error.found),
    }


def print_validation(result: ValidationReport) -> None:
    """Prints the report on stdout."""
    console = SafeConsole(highlight=False, soft_wrap=True)
    for line in report_lines(result, columns=console.width):
        console.print_wrapped(line, indent=_LABEL_COLUMNS)
    for warning in result.warnings:
        console.print_wrapped(f"warning   {warning}", indent=_LABEL_COLUMNS, style="yellow")
    if result.show_example and result.found.shown is not None and result.tokens is not None:
        _print_example(console, result)


def report_lines(result: ValidationReport, *, columns: int) -> Iterator[str]:
    """Yields the report without its example; `columns` bounds the bars."""
    found = result.found
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    yield f"{found.kinds.total()} rows: {kinds or 'none'}"
    if len(found.rows) > 1:
        for name, counts in found.rows.items():
            yield f"          {name}: " + ", ".join(
                f"{count} {kind}" for kind, count in counts.items()
            )
    for name in found.side_files:
        yield f"          {name}: a side file, without rows"
    refusals = found.refusals
    if refusals.groups:
        codes = ", ".join(f"{count} {code}" for code, count in refusals.codes.items())
        yield f"refused   {refusals.codes.total()}: {codes}"
    for group in refusals.groups:
        yield f"          {group}"
    if refusals.not_shown:
        yield f"          … and {refusals.not_shown} others"
    for part, count in refusals.unrendered.items():
        yield f"          {count} rows would lose their {part}: the chat template does not print it"
    if result.tokens is not None and found.lengths:
        yield from _token_lines(result, columns)
    yield from _cost_lines(result)
    yield f"submit    {result.spec.exchange.who_may_submit}"


def _token_lines(result: ValidationReport, columns: int) -> Iterator[str]:
    found, total = result.found, sum(result.found.lengths)
    yield f"tokens    {total}, {_percent(found.trained, total)} of them trained on"
    if found.lost:
        yield f"          {found.lost} more would be trained on, but are cut or dropped"
    yield "length    " + "  ".join(
        f"{name} {value}" for name, value in quantiles(found.lengths).items()
    )
    yield from _pair_lines(found.pairs)
    if found.outcomes and (labels := found.outcomes.labels):
        yield f"labels    {labels[True]} desirable answers, {labels[False]} undesirable ones"
    # The fullest range gets the longest bar; the lengths of the others are rounded up, so that one row is visible.
    ranges = histogram(found.lengths)
    highest = max(count for _, _, count in ranges)
    width = max(len(f"{first}-{last}") for first, last, _ in ranges)
    longest = max(1, min(_BAR_COLUMNS, columns - _LABEL_COLUMNS - width - len(f"  {highest}")))
    for first, last, count in ranges:
        bar = "█" * -(-longest * count // highest)
        yield f"          {f'{first}-{last}':>{width}} {bar} {count}"


def _pair_lines(pairs: PairLengths) -> Iterator[str]:
    if not pairs.prompt:
        return
    count = len(pairs.prompt)
    yield f"pairs     {count}; the chosen answer is the longer one in {_percent(pairs.longer, count)} of them"
    for name in ("prompt", "chosen", "rejected"):
        values = "  ".join(
            f"{key} {value}" for key, value in quantiles(getattr(pairs, name)).items()
        )
        yield f"          {name:8} {values}"


def _cost_lines(result: ValidationReport) -> Iterator[str]:
    found, sizes, memory = result.found, result.found.sizes, result.memory
    if sizes is not None and found.steps is not None and found.rates is not None:
        more = f" in {sizes.examples} examples" if sizes.examples != sizes.train else ""
        about = "" if found.exact else "about "
        yield f"split     {about}{sizes.train} rows to train on{more}, {about}{sizes.evaluation} to evaluate on"
        sets = found.mix.sets if found.mix else {}
        yield from (f"          {name}: {counts}" for name, counts in sets.items())
        yield f"steps     {about}{found.steps} optimizer steps"
        yield from _task_lines(result, about)
        rates = "  ".join(f"{name} {value:g}" for name, value in asdict(found.rates).items())
        ratio = result.spec.train.loraplus_lr_ratio
        of_b = f"; {ratio:g} times as much for the matrices B" if ratio else ""
        yield f"rate      {rates} (learning rate{of_b})"
    if result.targets:
        counts = "  ".join(f"{name} {count}" for name, count in result.targets.items())
        yield f"adapter   {counts} (modules of each name in lora.lora_target_modules)"
    if result.start_adapter is not None:
        yield from (
            f"start     {name}: {text}" for name, text in result.start_adapter.describe().items()
        )
    if memory is not None:
        shares = ", ".join(f"{name} {size / GIB:.2f}" for name, size in asdict(memory).items())
        total = f"{memory.total / GIB:.2f} GiB"
        yield f"GPU       about {total}: {shares} (estimated from widths, not measured yet)"


def _task_lines(result: ValidationReport, about: str) -> Iterator[str]:
    task, section = result.found.task, result.spec.evaluation
    if task is None:
        return
    metrics = ", ".join(section.metrics)
    yield f"task      {about}{task.judged} held-out rows judged, before and after training: {metrics}"
    for reason, count in task.not_judged.items():
        yield f"          {about}{count} not judged: {_NOT_JUDGED[reason]}"
    if section.generates:
        most = task.judged * section.max_new_tokens
        yield f"          each time {task.prompt_tokens} tokens of prompts, and {most} generated at most"
    if task.choices:
        yield f"          each time {task.judged * task.choices} answers compared, {task.choices} to a row"


_NOT_JUDGED: Final[Mapping[str, str]] = {
    "not_drawn": "more than evaluation.max_rows",
    "no_prompt": "no prompt before an answer",
    "no_answer": "no answer in text",
    "call": "the answer calls a tool",
    "undesirable": "the label is false",
    "too_long": "the prompt does not fit",
}


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "none"


def split_by_mask(example: Example, tokens: ModelTokenizer) -> Iterator[tuple[bool, str]]:
    """Yields the text of an example in pieces: whether the piece is trained on, and its text."""
    start = 0
    for position in range(1, example.length + 1):
        if position == example.length or example.trained[position] != example.trained[start]:
            yield bool(example.trained[start]), tokens.text(example.ids[start:position])
            start = position


def _print_example(console: SafeConsole, result: ValidationReport) -> None:
    shown, tokens = result.found.shown, result.tokens
    if shown is None or tokens is None:
        return
    count = f" ({len(shown.examples)} examples)" if len(shown.examples) > 1 else ""
    count = " (the chosen answer, then the rejected one)" if result.found.pairs.prompt else count
    console.print(
        Text(
            f"example   {shown.row.file} row {shown.row.index}{count}; trained on: ⟦…⟧",
            style="bold",
        )
    )
    for example in shown.examples:
        line = Text()
        for trained, text in split_by_mask(example, tokens):
            shown_text = show_control_characters(text)[:MAX_EXAMPLE_CHARACTERS]
            line.append(
                f"⟦{shown_text}⟧" if trained else shown_text, style="green" if trained else "dim"
            )
        console.print(line)
