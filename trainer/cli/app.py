"""The `trainer` command: assembles the commands of both faces and maps errors to exit codes."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from trainer import __version__
from trainer.cli import operator_commands as operator
from trainer.cli import provider_commands as provider
from trainer.cli.console import print_error, wants_json
from trainer.errors import ErrorCode, ExitCode, TrainerError, UnavailableError, UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    name="trainer",
    help="Fine-tune a model on data that nobody else may see: verify a confidential VM, seal the data to it, "
    "pull the checked LoRA adapter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"trainer {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before any command."""


provider.register(app)
operator.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. What it raises is a bug of ours (exit code 1)."""
    as_json = wants_json(arguments)
    try:
        code = app(args=list(arguments), prog_name="trainer", standalone_mode=False)
    except TrainerError as error:
        print_error(error, as_json=as_json)
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except TyperException as error:
        _print_usage_error(error)
        return int(ExitCode.USAGE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader left; say nothing more at interpreter exit
        return int(ExitCode.UNAVAILABLE)
    except OSError as error:
        problem = _storage_error(error)
        print_error(problem, as_json=as_json)
        return int(problem.exit_code)
    return code if isinstance(code, int) else int(ExitCode.DONE)


def _print_usage_error(error: TyperException) -> None:
    """The error with the command's usage line, where it has one."""
    if callable(show := getattr(error, "show", None)):
        show()
    else:
        typer.echo(f"error: {error.format_message()}", err=True)


def _storage_error(error: OSError) -> TrainerError:
    """A file that could not be read or written, on the user's own machine."""
    hint = "check that the path exists and may be written"
    if error.errno == errno.ENOSPC:
        return UnavailableError(ErrorCode.STORAGE_FULL, str(error), hint="make room and repeat the command")
    return UsageError(ErrorCode.USAGE, str(error), hint=hint)
