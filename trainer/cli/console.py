"""What a person (or a program, with `--json`) sees of a command on the provider's machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from trainer.attestation.checks import Check
    from trainer.attestation.result.attestation_result import AttestationResult

_STYLE = {"affirmed": "green", "contraindicated": "bold red", "not-demanded": "dim", "not-reached": "yellow"}
CODE_WIDTH = 24
"""Columns that the longest check code takes."""
FOUND_WIDTH = 46
"""Columns that are left of 80 for what was found."""
WIDE = 80
LEAST_TITLE = 40
"""Titles are shown, too, where the terminal has at least so many columns left for them."""


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for JSON; needed before it is parsed, to report errors in kind."""
    return "--json" in arguments


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_error(error: TrainerError, *, as_json: bool) -> None:
    """The error on stderr: what, expected, found, hint; with `as_json` also as an object on stdout."""
    if as_json:
        details = {
            "code": error.code.value,
            "message": error.message,
            "expected": _text(error.expected),
            "found": _text(error.found),
            "hint": error.hint,
        }
        print_json({"error": details, "exit_code": int(error.exit_code)})
    typer.echo(_lines(f"error[{error.code.value}]: {error}"), err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)


def _lines(text: str) -> str:
    """The message without control characters: it may name a key or value of a stranger's evidence."""
    from trainer.encoding import printable

    return "\n".join(map(printable, text.split("\n")))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class Report:
    """Progress of a command on stderr: bars with an ETA on a terminal, plain lines elsewhere.

    Use as a context manager. All methods do nothing when `quiet`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shown = -1

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_bar()

    def line(self, text: str) -> None:
        """One plain line."""
        if not self.quiet:
            self._console.print(Text(text))

    def step(self, title: str) -> None:
        """A new step of the story begins."""
        self.end_bar()
        self.line(f"→ {title}")

    def bytes_done(self, label: str, done: int, total: int) -> None:
        """Progress of a transfer, in bytes."""
        self._advance(label, done, total, (DownloadColumn(), TransferSpeedColumn()))

    def steps_done(self, label: str, done: int, total: int) -> None:
        """Progress of training, in optimizer steps."""
        self._advance(label, done, total, (MofNCompleteColumn(),))

    def _advance(self, label: str, done: int, total: int, columns: Sequence[ProgressColumn]) -> None:
        if self.quiet or not total:
            return
        if not self._console.is_terminal:
            self._plain(label, done, total)
            return
        if self._progress is None or self._task is None:
            self._progress = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                *columns,
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(label, total=total)
        self._progress.update(self._task, description=label, completed=done, total=total)
        if done >= total:
            self.end_bar()

    def _plain(self, label: str, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth != self._shown:
            self._shown = tenth
            self._console.print(Text(f"  {label}: {done} of {total} ({100 * done // total} %)"))

    def end_bar(self) -> None:
        """Leave the current bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._shown = None, None, -1


def print_result(result: AttestationResult) -> None:
    """One appraisal: the verdict and what it is about, then its checks."""
    from trainer.attestation.result.presentation import shortened, utc

    passed = result.status == "pass"
    console = _console()
    verdict = "✔ PASS" if passed else "✘ FAIL: do not upload"
    console.print(Text(verdict, style="bold green" if passed else "bold red"))
    facts = (
        ("policy", result.policy_sha256),
        ("job spec", result.job_spec_sha256),
        ("recipient", shortened(result.recipient, 64)),
        ("appraised", utc(result.appraised_at)),
        ("valid until", utc(result.expires_at)),
    )
    for name, value in facts:
        console.print(Text(f"  {name:12}{value}"))
    print_checks(result.checks, title="checks")


def print_checks(checks: Sequence[Check], *, title: str) -> None:
    """The checks by group, each with a symbol beside its colour; then what is wrong, and how many there are."""
    from trainer.attestation.checks import CheckState
    from trainer.attestation.result.presentation import grouped, summary

    console = _console()
    for group in grouped(checks):
        console.print()
        console.print(Text(group.title, style="bold"))
        _print_rows(console, group.checks)
    for check in checks:
        if check.state is CheckState.CONTRAINDICATED:
            _explain(console, check)
    console.print()
    console.print(Text(f"{title}: {summary(checks)}"))


def _console() -> Console:
    return Console(highlight=False)


def _print_rows(console: Console, checks: Sequence[Check]) -> None:
    """A line for each check; those that were not demanded and found nothing share one."""
    numbers = Column(width=3, justify="right"), Column(width=2, justify="right")
    table = _table(*numbers, Column(width=CODE_WIDTH), Column(no_wrap=True), Column(no_wrap=True))
    silent = [check for check in checks if check.state == "not-demanded" and not (check.found or check.detail)]
    for check in checks:
        if check not in silent:
            table.add_row(*map(Text, _cells(check, console.width)), style=_STYLE[check.state.value])
    console.print(table)
    if silent:
        codes = ", ".join(check.code for check in silent)
        console.print(Padding(Text(f"not demanded: {codes}", style=_STYLE["not-demanded"]), (0, 0, 0, 7)))


def _cells(check: Check, width: int) -> tuple[str, ...]:
    """What a check's line says; beside what was found, also what was demanded, where the terminal is wide."""
    from trainer.attestation.result.presentation import SYMBOLS, WORDS, shortened
    from trainer.encoding import printable

    told = "" if check.state == "affirmed" else WORDS[check.state]
    found = ": ".join(part for part in (told, check.found or check.detail) if part)
    cells = (SYMBOLS[check.state], str(check.number), check.code, shortened(printable(found), FOUND_WIDTH))
    room = width - WIDE
    title = check.title if len(check.title) <= room else f"{check.title[: room - 1]}…"
    return (*cells, title) if room >= LEAST_TITLE else cells


def _table(*columns: Column) -> Table:
    return Table(*columns, box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))


def _explain(console: Console, check: Check) -> None:
    """All that there is to say of a check that failed."""
    from trainer.attestation.result.presentation import SYMBOLS, explanation

    console.print()
    console.print(Text(f"{SYMBOLS[check.state]} {check.number} {check.code}: {check.title}", style="bold red"))
    table = _table(Column(width=18, justify="right", style="dim"), Column(overflow="fold"))
    for label, text in explanation(check):
        table.add_row(Text(label), Text(text))
    console.print(table)
