"""The `audit` command: review a compose file before a policy demands it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from trainer.cli.console import SafeConsole, print_json, print_line
from trainer.errors import ExitCode

if TYPE_CHECKING:
    from trainer.audit import ComposeReview, Finding

_SEVERITY_STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}
_FILE_COLUMNS = 160
_MAX_ROWS = 500
"""Rows of one table; the layout of more takes long. `--json` has all of them."""


def audit_compose_file(
    compose: Annotated[Path, typer.Argument(help="app-compose.json or docker-compose.yaml.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="OLD", help="List what changed since this file.")
    ] = None,
    fail_on: Annotated[
        Literal["critical", "high", "medium", "low", "info", "never"],
        typer.Option("--fail-on", help="Exit with code 4 if a finding has at least this severity."),
    ] = "high",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Review a compose file before `policy init`: its hash, what is not as shipped, and what changed."""
    from trainer.audit import Severity, audit_compose

    review = audit_compose(read_compose(compose), against=read_compose(against) if against else None)
    if as_json:
        print_json(asdict(review))
    else:
        print_review(review, compared=against is not None)
    if fail_on != "never" and review.reaches(Severity(fail_on)):
        raise typer.Exit(int(ExitCode.VERIFICATION))


def read_compose(path: Path) -> bytes:
    """Returns the exact bytes of a compose file."""
    from trainer.audit import MAX_COMPOSE_BYTES
    from trainer.provider import read_small_file

    return read_small_file(path, "compose file", MAX_COMPOSE_BYTES)


def print_review(review: ComposeReview, *, compared: bool) -> None:
    """Prints findings, changes if the file was compared with another one, and digests."""
    from trainer.audit import Severity

    console = SafeConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    if review.findings:
        console.print(_findings_table(review.findings))
        _print_omitted(len(review.findings), "findings")
    if review.changes:
        table = _make_table("changed", "old", "new")
        for change in review.changes[:_MAX_ROWS]:
            old, new = ("(absent)" if value is None else value for value in (change.old, change.new))
            table.add_row(change.path, old, new)
        console.print(table)
        _print_omitted(len(review.changes), "changes")
    elif compared:
        print_line("changes: none in meaning")
    print_line(f"compose hash: {review.compose_sha256 or 'none: a docker-compose file alone is not measured'}")
    print_line(f"job spec: {review.job_spec_sha256 or 'none in the text'}")
    if review.who_may_submit is not None:
        print_line(f"submission: {review.who_may_submit}")
    severities = [finding.severity for finding in review.findings]
    counts = [f"{severities.count(level)} {level.value}" for level in Severity if level in severities]
    print_line(f"findings: {', '.join(counts) or 'none'}")


def _print_omitted(count: int, what: str) -> None:
    if count > _MAX_ROWS:
        print_line(f"… and {count - _MAX_ROWS} more {what}: --json lists all")


def _findings_table(findings: tuple[Finding, ...]) -> Table:
    from trainer.audit import EMBEDDED

    has_embedded = any(finding.path.startswith(EMBEDDED) for finding in findings)
    table = _make_table("", "line", "code", "where", "what", "hint")
    table.caption = f"Lines of {EMBEDDED}.… count within that text." if has_embedded else None
    for finding in findings[:_MAX_ROWS]:
        cells = (str(finding.line), finding.code, finding.path, finding.message, finding.hint)
        table.add_row(finding.severity.value, *cells, style=_SEVERITY_STYLES[finding.severity])
    return table


def _make_table(*columns: str) -> Table:
    table = Table(show_lines=False, pad_edge=False, caption_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
