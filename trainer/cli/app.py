"""The `trainer` command: assembles the commands of both faces and maps errors to exit codes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click
import typer

from trainer import __version__
from trainer.cli import operator, provider
from trainer.cli.output import print_error, wants_json
from trainer.errors import ErrorCode, ExitCode, TrainerError, UnavailableError

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
    """Run one command; returns the exit code of DESIGN.md section 4.1 and never raises."""
    as_json = wants_json(arguments)
    try:
        code = app(args=list(arguments), prog_name="trainer", standalone_mode=False)
    except TrainerError as error:
        print_error(error, as_json=as_json)
        return int(error.exit_code)
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader left; say nothing more at interpreter exit
        return int(ExitCode.UNAVAILABLE)
    except OSError as error:
        hint = "check that the path exists, is writable, and has room"
        problem = UnavailableError(
            ErrorCode.STORAGE_FULL if error.errno == 28 else ErrorCode.USAGE, str(error), hint=hint
        )
        print_error(problem, as_json=as_json)
        return int(problem.exit_code)
    return int(code) if isinstance(code, int) else int(ExitCode.DONE)
