"""How a command prints an appraisal and its checks, on the console that no text can command."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from trainer.cli.safe_console import SafeConsole

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
BASE_COLUMNS: Final = 80
FOUND_COLUMNS: Final = 46
"""Columns for what a check found, of 80; fewer on a narrower terminal."""
MIN_TITLE_COLUMNS: Final = 40
"""Titles are shown as well where the terminal has at least this many columns beyond `BASE_COLUMNS`."""


def print_attestation_result(result: AttestationResult) -> None:
    """Prints an appraisal: the verdict, what it is about, and its checks."""
    from trainer.attestation.result.presentation import NOT_FRESH, shortened
    from trainer.durations import utc_and_distance

    console = SafeConsole(highlight=False)
    if result.development_root:
        print_development_banner()
    verdict, style = _verdict(result)
    console.print(Text(verdict, style=style))
    now = int(time.time())
    facts = (
        ("policy", result.policy_sha256),
        ("job spec", result.job_spec_sha256),
        ("recipient", shortened(result.recipient, 64)),
        ("appraised", utc_and_distance(result.appraised_at, now=now)),
        ("valid until", utc_and_distance(result.expires_at, now=now)),
        ("fresh", "yes" if result.fresh else f"no: {NOT_FRESH}"),
    )
    for name, value in facts:
        console.print_wrapped(f"  {name:12}{value}", indent=14)
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
        _print_check_rows(
            console, group.checks, _DEVELOPMENT_STYLES if development_root else _STATE_STYLES
        )
    for check in checks:
        if check.state is CheckState.CONTRAINDICATED:
            _print_failed_check(console, check)
    console.print()
    console.print(Text(f"{title}: {summary(checks)}"))


def _print_check_rows(console: Console, checks: Sequence[Check], styles: Mapping[str, str]) -> None:
    """Prints one line per check; checks that were not demanded and found nothing share one line."""
    numbers = Column(width=3, justify="right"), Column(width=2, justify="right")
    table = _borderless_table(
        *numbers, Column(width=CODE_COLUMNS), Column(no_wrap=True), Column(no_wrap=True)
    )
    skipped = [
        check
        for check in checks
        if check.state == "not-demanded" and not (check.found or check.detail)
    ]
    for check in checks:
        if check not in skipped:
            table.add_row(
                *map(Text, _check_cells(check, console.width)), style=styles[check.state.value]
            )
    console.print(table)
    if skipped:
        codes = ", ".join(check.code for check in skipped)
        console.print(
            Padding(Text(f"not demanded: {codes}", style=styles["not-demanded"]), (0, 0, 0, 7))
        )


def _check_cells(check: Check, terminal_columns: int) -> tuple[str, ...]:
    """Returns the cells of a check's line; with its title if the terminal is wide enough."""
    from trainer.attestation.result.presentation import SYMBOLS, WORDS, shortened
    from trainer.encoding import printable

    # What a check found may be text of an untrusted job: no control character reaches the terminal.
    state = "" if check.state == "affirmed" else WORDS[check.state]
    found = ": ".join(part for part in (state, check.found or check.detail) if part)
    room = terminal_columns - BASE_COLUMNS
    found_columns = FOUND_COLUMNS + min(room, 0)
    cells = (
        SYMBOLS[check.state],
        str(check.number),
        check.code,
        shortened(printable(found), found_columns),
    )
    if room < MIN_TITLE_COLUMNS:
        return cells
    return (*cells, check.title if len(check.title) <= room else f"{check.title[: room - 1]}…")


def _print_failed_check(console: Console, check: Check) -> None:
    """Prints everything that is known of a failed check."""
    from trainer.attestation.result.presentation import SYMBOLS, explanation

    console.print()
    console.print(
        Text(f"{SYMBOLS[check.state]} {check.number} {check.code}: {check.title}", style="bold red")
    )
    table = _borderless_table(
        Column(width=18, justify="right", style="dim"), Column(overflow="fold")
    )
    for label, text in explanation(check):
        table.add_row(Text(label), Text(text))
    console.print(table)


def _borderless_table(*columns: Column) -> Table:
    return Table(*columns, box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
