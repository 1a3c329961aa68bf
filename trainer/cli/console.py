"""What a command prints: results on stdout, for a person or with `--json`; progress and errors on stderr.

Everything that a command prints goes through this module, or `safe_console`. Much of it comes from others: metrics
and statuses of a job, texts of evidence, names of files. So a text for people reaches the terminal with control,
formatting and invisible characters as visible escapes (`print_line`, `SafeConsole`), and JSON is ASCII
(`print_json`).
"""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Mapping, Sequence

import typer
from typer.exceptions import TyperException

from trainer.cli.terminal_text import clean_text
from trainer.errors import ErrorCode, TrainerError, UsageError


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


def print_wrapped(text: str, *, indent: int = 0, style: str = "") -> None:
    """Prints a text on stdout as `SafeConsole.print_wrapped` does."""
    from trainer.cli.safe_console import SafeConsole

    SafeConsole(highlight=False).print_wrapped(text, indent=indent, style=style)


def print_summary(
    summary: Mapping[str, object], *, as_json: bool, show: Sequence[str] | None = None
) -> None:
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
