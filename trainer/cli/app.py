"""The `trainer` command: the list of all commands, and the one place that maps errors to exit codes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from trainer import __version__
from trainer.cli.audit_command import audit_compose_file
from trainer.cli.console import print_bug, print_error, print_line, print_usage_error, wants_json
from trainer.cli.exit_codes import INTERRUPTED, as_trainer_error, exit_code_of
from trainer.cli.job_commands import job_app
from trainer.cli.keygen_command import generate_key
from trainer.cli.operator_commands import run_job_spec, simulate_guest_agent
from trainer.cli.policy_command import policy_app
from trainer.cli.provider_commands import (
    acknowledge_result,
    pull_result,
    seal_data,
    upload_dataset,
    watch_training,
)
from trainer.cli.receipt_commands import receipt_app
from trainer.cli.regrant_command import regrant_job
from trainer.cli.result_commands import open_result, submit_dataset
from trainer.cli.try_command import try_adapter
from trainer.cli.validate_command import validate_dataset
from trainer.cli.verify_command import verify_job
from trainer.cli.withdraw_command import withdraw
from trainer.errors import ExitCode, TrainerError

app = typer.Typer(
    name="trainer",
    help="Fine-tune a model on data that nobody else may see: verify a confidential VM, seal the data to it, "
    "pull the checked LoRA adapter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        print_line(f"trainer {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options before any command."""


# The provider's commands in the order of a job, then the operator's. `--help` lists them in this order.
app.command("keygen")(generate_key)
app.command("audit")(audit_compose_file)
app.add_typer(policy_app, name="policy")
app.command("verify")(verify_job)
app.command("validate")(validate_dataset)
app.command("submit")(submit_dataset)
app.command("seal")(seal_data)
app.command("upload")(upload_dataset)
app.command("regrant")(regrant_job)
app.command("withdraw")(withdraw)
app.command("watch")(watch_training)
app.command("pull")(pull_result)
app.command("open")(open_result)
app.command("ack")(acknowledge_result)
app.add_typer(receipt_app, name="receipt")
app.command("try")(try_adapter)
app.add_typer(job_app, name="job")
app.command("run")(run_job_spec)
app.command("simulate")(simulate_guest_agent)


def run_command_line(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    as_json = wants_json(arguments)
    try:
        code = app(args=list(arguments), prog_name="trainer", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 -- the interpreter would print the message of a bug as it is
        _print_failure(error, as_json=as_json)
        return exit_code_of(error)
    return code if isinstance(code, int) else int(ExitCode.DONE)


def _print_failure(error: Exception, *, as_json: bool) -> None:
    """Prints what ended a command."""
    if isinstance(error, BrokenPipeError):
        # The reader of stdout is gone. Without this, flushing at interpreter exit would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    elif isinstance(error, OSError):
        print_error(as_trainer_error(error), as_json=as_json)
    elif isinstance(error, TrainerError):
        print_error(error, as_json=as_json)
    elif isinstance(error, TyperException):
        print_usage_error(error, as_json=as_json)
    else:
        print_bug(error)
