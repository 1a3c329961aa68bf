"""The `audit` command: review a compose file before a policy demands it."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from trainer.cli.console import SafeConsole, clean_text, print_json, print_line
from trainer.errors import ExitCode

if TYPE_CHECKING:
    from trainer.audit import ComposeReview, Finding

_SEVERITY_STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}
_INDENT = 10
_MAX_SHOWN = 500
"""Findings that are printed, and changes; `--json` has all of them."""


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
    from trainer.audit import EMBEDDED, Severity

    console = SafeConsole(highlight=False)
    for finding in review.findings[:_MAX_SHOWN]:
        _print_finding(console, finding)
    _print_omitted(len(review.findings), "findings")
    for change in review.changes[:_MAX_SHOWN]:
        console.print(Text(f"changed   {change.path}", style="bold"))
        for sign, value in (("-", change.old), ("+", change.new)):
            _print_indented(console, f"{sign} {'(absent)' if value is None else value}")
    _print_omitted(len(review.changes), "changes")
    if any(finding.path.startswith(EMBEDDED) for finding in review.findings):
        print_line(f"Lines of {EMBEDDED}.… count within that text.")
    if compared and not review.changes:
        print_line("changes: none in meaning")
    print_line(f"compose hash: {review.compose_sha256 or 'none: a docker-compose file alone is not measured'}")
    print_line(f"job spec: {review.job_spec_sha256 or 'none in the text'}")
    if review.who_may_submit is not None:
        console.print(Text(textwrap.fill(clean_text(f"submission: {review.who_may_submit}"), console.width)))
    severities = [finding.severity for finding in review.findings]
    counts = [f"{severities.count(level)} {level.value}" for level in Severity if level in severities]
    print_line(f"findings: {', '.join(counts) or 'none'}")


def _print_omitted(count: int, what: str) -> None:
    if count > _MAX_SHOWN:
        print_line(f"… and {count - _MAX_SHOWN} more {what}: --json lists all")


def _print_finding(console: SafeConsole, finding: Finding) -> None:
    """Prints one finding: what it is and where, then what was found, then what to do about it."""
    style = _SEVERITY_STYLES[finding.severity]
    console.print(Text(f"{finding.severity.value:{_INDENT}}{finding.code}", style=f"{style} bold"))
    _print_indented(console, f"{finding.path}, line {finding.line}", style="dim")
    _print_indented(console, finding.message)
    _print_indented(console, f"→ {finding.hint}")


def _print_indented(console: SafeConsole, text: str, style: str = "") -> None:
    """Prints a paragraph that wraps within the terminal, also where a digest is longer than a line."""
    indent = " " * _INDENT
    wrapped = textwrap.fill(
        clean_text(text), console.width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    console.print(Text(wrapped, style=style))
