"""The `audit` command: review a compose file before a policy demands it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainer.cli.console import print_json, print_line
from trainer.errors import ExitCode

if TYPE_CHECKING:
    from trainer.audit import ComposeReview
    from trainer.cli.safe_console import SafeConsole

_SEVERITY_STYLES = {
    "critical": "bold red",
    "high": "red",
    "medium": "yellow",
    "low": "cyan",
    "info": "dim",
}
_INDENT = 10
_MAX_SHOWN = 500
"""Findings that are printed, and changes; `--json` has all of them."""


def audit_compose_file(
    compose: Annotated[Path, typer.Argument(help="app-compose.json or docker-compose.yaml.")],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="OLD", help="List what changed since this file."),
    ] = None,
    fail_on: Annotated[
        Literal["critical", "high", "medium", "low", "info", "never"],
        typer.Option("--fail-on", help="Exit with code 4 if a finding has at least this severity."),
    ] = "high",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Review a compose file before `policy init`: its hash, what is not as shipped, and what changed."""
    from trainer.audit import Severity, audit_compose

    review = audit_compose(
        read_compose(compose), against=read_compose(against) if against else None
    )
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
    from trainer.cli.safe_console import SafeConsole

    console = SafeConsole(highlight=False)
    for finding in review.findings[:_MAX_SHOWN]:
        title = f"{finding.severity.value:{_INDENT}}{finding.code}"
        console.print_wrapped(title, style=f"{_SEVERITY_STYLES[finding.severity]} bold")
        _print_indented(console, f"{finding.path}, line {finding.line}", style="dim")
        _print_indented(console, finding.message)
        _print_indented(console, f"→ {finding.hint}")
    _print_omitted(len(review.findings), "findings")
    for change in review.changes[:_MAX_SHOWN]:
        console.print_wrapped(f"changed   {change.path}", indent=_INDENT, style="bold")
        for sign, value in (("-", change.old), ("+", change.new)):
            _print_indented(console, f"{sign} {'(absent)' if value is None else value}")
    _print_omitted(len(review.changes), "changes")
    if any(finding.path.startswith(EMBEDDED) for finding in review.findings):
        print_line(f"Lines of {EMBEDDED}.… count within that text.")
    if compared and not review.changes:
        print_line("changes: none in meaning")
    compose_hash = review.compose_sha256 or "none: a docker-compose file alone is not measured"
    console.print_wrapped(f"compose hash: {compose_hash}", indent=2)
    console.print_wrapped(f"job spec: {review.job_spec_sha256 or 'none in the text'}", indent=2)
    if review.who_may_submit is not None:
        console.print_wrapped(f"submission: {review.who_may_submit}", indent=2)
    severities = [finding.severity for finding in review.findings]
    counts = [
        f"{severities.count(level)} {level.value}" for level in Severity if level in severities
    ]
    print_line(f"findings: {', '.join(counts) or 'none'}")


def _print_omitted(count: int, what: str) -> None:
    if count > _MAX_SHOWN:
        print_line(f"… and {count - _MAX_SHOWN} more {what}: --json lists all")


def _print_indented(console: SafeConsole, text: str, style: str = "") -> None:
    console.print_wrapped(" " * _INDENT + text, indent=_INDENT, style=style)
