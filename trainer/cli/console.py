"""What a command prints: results on stdout, for a person or with `--json`; progress and errors on stderr.

Everything that a command prints goes through this module. Much of it comes from others: metrics and statuses of a
job, texts of evidence, names of files. So a text for people reaches the terminal with control, formatting and
invisible characters as visible escapes (`print_line`, `SafeConsole`), and JSON is ASCII (`print_json`).
"""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text
from typer.exceptions import TyperException

from trainer.errors import ErrorCode, TrainerError, UsageError

if TYPE_CHECKING:
    from trainer.attestation.checks import Check
    from trainer.attestation.result.attestation_result import AttestationResult

_STATE_STYLES: Final = {
    "affirmed": "green",
    "contraindicated": "bold red",
    "not-demanded": "dim",
    "not-reached": "yellow",
}
_DEVELOPMENT_STYLES: Final = _STATE_STYLES | {"affirmed": "yellow"}
"""Under a development root nothing is green: it would say that it is good."""
CODE_COLUMNS: Final = 24
"""Columns of the longest check code."""
FOUND_COLUMNS: Final = 46
"""Columns that remain of 80 for what a check found."""
BASE_COLUMNS: Final = 80
MIN_TITLE_COLUMNS: Final = 40
"""Titles are shown as well where the terminal has at least this many columns beyond `BASE_COLUMNS`."""


def wants_json(arguments: Sequence[str]) -> bool:
    """Returns whether the command line asks for JSON; needed before it is parsed, to report a parsing error."""
    return "--json" in arguments


def print_json(value: Mapping[str, object]) -> None:
    """Prints one JSON object on one line of stdout, in printable ASCII."""
    # JSON escapes what is not ASCII and the control characters below space, line ends among them; not DEL.
    typer.echo(json.dumps(value).replace("\x7f", "\\u007f"))


def print_line(text: str, *, err: bool = False) -> None:
    """Prints a text on stdout, or on stderr if `err`; its line ends stay, other control characters are escaped."""
    typer.echo(clean_text(text), err=err)


def print_exactly(data: bytes) -> None:
    """Writes the bytes of a document to stdout, unchanged: for a file of the user's own, or a pipe."""
    typer.echo(data, nl=False)


def clean_text(text: str) -> str:
    """Returns `text` with every character that could command a terminal as a visible escape, except line ends."""
    from trainer.encoding import printable

    return "\n".join(map(printable, text.split("\n")))


class SafeConsole(Console):
    """A console of rich on which no text can command the terminal: only rich's own styles do."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as rich does, with the text of each segment cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean_text(segment.text))


def print_summary(summary: Mapping[str, object], *, as_json: bool, show: Sequence[str] | None = None) -> None:
    """Prints the outcome of a command: with `as_json` everything, otherwise a line for each field in `show`.

    Args:
        summary: the fields, in order.
        as_json: whether to print one JSON object.
        show: the fields that a person sees; None shows all.
    """
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        if show is None or name in show:
            print_line(f"{name}: {value}")


def print_error(error: TrainerError, *, as_json: bool) -> None:
    """Prints an error on stderr: message, expected, found, hint; with `as_json` also as an object on stdout."""
    if as_json:
        print_json(error_document(error))
    print_line(f"error[{error.code.value}]: {error}", err=True)
    if error.hint:
        print_line(f"hint: {error.hint}", err=True)


def error_document(error: TrainerError) -> dict[str, object]:
    """Returns an error as the object that `--json` prints."""
    details = {
        "code": error.code.value,
        "message": error.message,
        "expected": None if error.expected is None else str(error.expected),
        "found": None if error.found is None else str(error.found),
        "hint": error.hint,
    }
    return {"error": details, "exit_code": int(error.exit_code)}


def print_usage_error(error: TyperException, *, as_json: bool) -> None:
    """Prints what is wrong with a command line, with the usage line of the command."""
    if as_json:
        print_json(error_document(UsageError(ErrorCode.USAGE, error.format_message())))
    if callable(show := getattr(error, "show", None)):
        shown = io.StringIO()
        show(file=shown)
        print_line(shown.getvalue().rstrip("\n"), err=True)
    else:
        print_line(f"error: {error.format_message()}", err=True)


def print_bug(error: Exception) -> None:
    """Prints the traceback of an error that nobody expected; its message may quote anything."""
    print_line("".join(traceback.format_exception(error)).rstrip("\n"), err=True)


class TerminalProgress:
    """Progress of a command on stderr: bars with a remaining time on a terminal, plain lines elsewhere.

    Use it as a context manager, which ends the current bar. All methods do nothing if `quiet`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last_tenth = -1

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_bar()

    def line(self, text: str) -> None:
        """Prints a plain line."""
        if not self.quiet:
            self._console.print(Text(text))

    def step(self, title: str) -> None:
        """Prints that a step begins."""
        self.end_bar()
        self.line(f"→ {title}")

    def bytes_done(self, label: str, done: int, total: int) -> None:
        """Shows the progress of a transfer, in bytes."""
        self._show(label, done, total, (DownloadColumn(), TransferSpeedColumn()))

    def steps_done(self, label: str, done: int, total: int) -> None:
        """Shows the progress of training, in optimizer steps."""
        self._show(label, done, total, (MofNCompleteColumn(),))

    def _show(self, label: str, done: int, total: int, columns: Sequence[ProgressColumn]) -> None:
        if self.quiet or not total:
            return
        if not self._console.is_terminal:
            # Not a terminal: a line for every tenth, so that a log stays short.
            tenth = 10 * done // total
            if tenth != self._last_tenth:
                self._last_tenth = tenth
                self._console.print(Text(f"  {label}: {done} of {total} ({100 * done // total} %)"))
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

    def end_bar(self) -> None:
        """Ends the current bar and leaves it on the screen."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._last_tenth = None, None, -1


def print_attestation_result(result: AttestationResult) -> None:
    """Prints an appraisal: the verdict, what it is about, and its checks."""
    from trainer.attestation.result.presentation import NOT_FRESH, shortened, utc

    console = SafeConsole(highlight=False)
    if result.development_root:
        print_development_banner()
    verdict, style = _verdict(result)
    console.print(Text(verdict, style=style))
    facts = (
        ("policy", result.policy_sha256),
        ("job spec", result.job_spec_sha256),
        ("recipient", shortened(result.recipient, 64)),
        ("appraised", utc(result.appraised_at)),
        ("valid until", utc(result.expires_at)),
        ("fresh", "yes" if result.fresh else f"no: {NOT_FRESH}"),
    )
    for name, value in facts:
        console.print(Text(f"  {name:12}{value}"))
    for caution in result.cautions:
        console.print(Padding(Text(f"CAUTION: {caution}", style="yellow"), (0, 0, 0, 2)))
    print_checks(result.checks, title="checks", development_root=result.development_root)


def print_development_banner() -> None:
    """Prints that what follows rests on a development root."""
    from trainer.attestation.result.presentation import DEVELOPMENT_BANNER

    SafeConsole(highlight=False).print(Text(DEVELOPMENT_BANNER, style="bold red"))


def _verdict(result: AttestationResult) -> tuple[str, str]:
    """Returns the verdict and its style."""
    if result.status != "pass":
        return "✘ FAIL: do not upload", "bold red"
    if result.development_root:
        return "! PASS UNDER A DEVELOPMENT ROOT: never for real data", "bold yellow"
    return "✔ PASS", "bold green"


def print_checks(checks: Sequence[Check], *, title: str, development_root: bool = False) -> None:
    """Prints the checks by group with a symbol each, then the details of failed checks, then the counts.

    Args:
        checks: the checks.
        title: what they are checks of.
        development_root: whether they rest on a development root, so that nothing of them is shown as good.
    """
    from trainer.attestation.checks import CheckState
    from trainer.attestation.result.presentation import grouped, summary

    console = SafeConsole(highlight=False)
    for group in grouped(checks):
        console.print()
        console.print(Text(group.title, style="bold"))
        _print_check_rows(console, group.checks, _DEVELOPMENT_STYLES if development_root else _STATE_STYLES)
    for check in checks:
        if check.state is CheckState.CONTRAINDICATED:
            _print_failed_check(console, check)
    console.print()
    console.print(Text(f"{title}: {summary(checks)}"))


def _print_check_rows(console: Console, checks: Sequence[Check], styles: Mapping[str, str]) -> None:
    """Prints one line per check; checks that were not demanded and found nothing share one line."""
    numbers = Column(width=3, justify="right"), Column(width=2, justify="right")
    table = _borderless_table(*numbers, Column(width=CODE_COLUMNS), Column(no_wrap=True), Column(no_wrap=True))
    skipped = [check for check in checks if check.state == "not-demanded" and not (check.found or check.detail)]
    for check in checks:
        if check not in skipped:
            table.add_row(*map(Text, _check_cells(check, console.width)), style=styles[check.state.value])
    console.print(table)
    if skipped:
        codes = ", ".join(check.code for check in skipped)
        console.print(Padding(Text(f"not demanded: {codes}", style=styles["not-demanded"]), (0, 0, 0, 7)))


def _check_cells(check: Check, terminal_columns: int) -> tuple[str, ...]:
    """Returns the cells of a check's line; with its title if the terminal is wide enough."""
    from trainer.attestation.result.presentation import SYMBOLS, WORDS, shortened
    from trainer.encoding import printable

    # What a check found may be text of an untrusted job: no control character reaches the terminal.
    state = "" if check.state == "affirmed" else WORDS[check.state]
    found = ": ".join(part for part in (state, check.found or check.detail) if part)
    cells = (SYMBOLS[check.state], str(check.number), check.code, shortened(printable(found), FOUND_COLUMNS))
    room = terminal_columns - BASE_COLUMNS
    if room < MIN_TITLE_COLUMNS:
        return cells
    return (*cells, check.title if len(check.title) <= room else f"{check.title[: room - 1]}…")


def _print_failed_check(console: Console, check: Check) -> None:
    """Prints everything that is known of a failed check."""
    from trainer.attestation.result.presentation import SYMBOLS, explanation

    console.print()
    console.print(Text(f"{SYMBOLS[check.state]} {check.number} {check.code}: {check.title}", style="bold red"))
    table = _borderless_table(Column(width=18, justify="right", style="dim"), Column(overflow="fold"))
    for label, text in explanation(check):
        table.add_row(Text(label), Text(text))
    console.print(table)


def _borderless_table(*columns: Column) -> Table:
    return Table(*columns, box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
