"""What a person (or a program, with `--json`) sees of a command on the provider's machine."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
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
from rich.table import Table
from rich.text import Text

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from trainer.attestation.checks import Check

_STYLE = {"affirmed": "green", "contraindicated": "bold red", "not-demanded": "dim", "not-reached": "yellow"}
_MARK = {"affirmed": "✔", "contraindicated": "✘", "not-demanded": "-", "not-reached": "?"}


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
    typer.echo(f"error[{error.code.value}]: {error}", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)


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


def print_checks(checks: Sequence[Check], *, title: str) -> None:
    """The checks as a table a person reads at a glance (green, red, grey), and a line that counts them."""
    table = Table(title=title, title_justify="left", show_lines=False, pad_edge=False)
    for name in ("#", "check", "", "what", "expected", "found"):
        table.add_column(name, overflow="fold")
    for check in checks:
        state = check.state.value
        detail = (
            (check.expected or "", check.found or "") if state == "contraindicated" else ("", _short(check.found))
        )
        table.add_row(str(check.number), check.code, _MARK[state], check.title, *detail, style=_STYLE[state])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    counts = Counter(check.state.value for check in checks)
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))


def _short(text: str | None, length: int = 40) -> str:
    if text is None:
        return ""
    return text if len(text) <= length else text[: length - 1] + "…"
