"""The `audit` command: review a compose file before a policy demands it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli.console import print_json
from trainer.errors import ExitCode

if TYPE_CHECKING:
    from trainer.audit import Change, ComposeReview, Finding

_STYLE = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}
_WIDTH = 160
_MAX_ROWS = 500
"""Of one table: nobody reads more, and laying them out takes long. `--json` has all."""


def audit_compose_file(
    compose: Annotated[Path, typer.Argument(help="app-compose.json or docker-compose.yaml.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="OLD", help="List what changed since this file.")
    ] = None,
    fail_on: Annotated[
        Literal["critical", "high", "medium", "low", "info", "never"],
        typer.Option("--fail-on", help="Exit with 4 if there is a finding as bad as this, or worse."),
    ] = "high",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Review a compose file: its hash, what is dangerous in it, and what changed. Do this before `policy init`."""
    from trainer.audit import Severity, audit_compose

    audited = audit_compose(_read(compose), against=_read(against) if against else None)
    if as_json:
        print_json(asdict(audited))
    else:
        _print(audited, compared=against is not None)
    if fail_on != "never" and audited.reaches(Severity(fail_on)):
        raise typer.Exit(int(ExitCode.VERIFICATION))


def _read(path: Path) -> bytes:
    from trainer.audit import MAX_COMPOSE_BYTES
    from trainer.provider import read_small_file

    return read_small_file(path, "compose file", MAX_COMPOSE_BYTES)


def _print(audited: ComposeReview, *, compared: bool) -> None:
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    if audited.findings:
        console.print(_findings_table(audited.findings))
        _say_rest(len(audited.findings), "findings")
    if audited.changes:
        console.print(_changes_table(audited.changes))
        _say_rest(len(audited.changes), "changes")
    elif compared:
        typer.echo("changes: none in meaning")
    typer.echo(f"compose hash: {audited.compose_sha256 or 'none: a docker-compose file alone is not measured'}")
    typer.echo(f"job spec: {audited.job_spec_sha256 or 'none in the text'}")
    typer.echo(_summary(audited))


def _say_rest(count: int, what: str) -> None:
    if count > _MAX_ROWS:
        typer.echo(f"… and {count - _MAX_ROWS} more {what}: --json lists all")


def _findings_table(findings: tuple[Finding, ...]) -> Table:
    from trainer.audit import EMBEDDED

    inside = any(finding.path.startswith(EMBEDDED) for finding in findings)
    table = _table("", "line", "code", "where", "what", "hint")
    table.caption = f"Lines of {EMBEDDED}.… count within that text." if inside else None
    for found in findings[:_MAX_ROWS]:
        cells = (str(found.line), found.code, found.path, found.message, found.hint)
        table.add_row(found.severity.value, *cells, style=_STYLE[found.severity])
    return table


def _changes_table(changes: tuple[Change, ...]) -> Table:
    table = _table("changed", "old", "new")
    for change in changes[:_MAX_ROWS]:
        table.add_row(change.path, *("(absent)" if each is None else each for each in (change.old, change.new)))
    return table


def _table(*columns: str) -> Table:
    table = Table(show_lines=False, pad_edge=False, caption_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _summary(audited: ComposeReview) -> str:
    from trainer.audit import Severity

    severities = [finding.severity for finding in audited.findings]
    counts = [f"{severities.count(each)} {each.value}" for each in Severity if each in severities]
    return f"findings: {', '.join(counts) or 'none'}"
