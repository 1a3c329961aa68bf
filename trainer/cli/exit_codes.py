"""How commands end: the table of exit codes, and which of them an error has."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

import typer
from typer.exceptions import TyperException

from trainer.errors import ErrorCode, ExitCode, TrainerError, UnavailableError, UsageError

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells report it."""

EXIT_CODES: Final[Mapping[int, str]] = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "an error of this tool: please report it",
    ExitCode.USAGE: "the command line or a file that it names is not what it must be; repeating it will not help",
    ExitCode.UNAVAILABLE: "something did not answer, or a disk is full; repeating the command may help",
    ExitCode.VERIFICATION: "verification failed: do not upload, and do not use the result",
    ExitCode.SEALING: "sealing or opening failed: a wrong key, or changed or truncated bytes",
    ExitCode.JOB: "the job failed, or refused the dataset",
    ExitCode.LOCAL_DATA: "your data is refused; nothing was sent",
    INTERRUPTED: "interrupted with Ctrl-C",
}
"""Exit code → what it means."""


def as_trainer_error(error: OSError) -> TrainerError:
    """Returns the error for a file on the user's machine that cannot be read or written."""
    if error.errno == errno.ENOSPC:
        return UnavailableError(
            ErrorCode.STORAGE_FULL, str(error), hint="make room and repeat the command"
        )
    return UsageError(
        ErrorCode.USAGE, str(error), hint="check that the path exists and may be written"
    )


def exit_code_of(error: BaseException) -> int:
    """Returns the exit code of a command that an exception ends."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return int(ExitCode.UNAVAILABLE)
    if isinstance(error, OSError):
        error = as_trainer_error(error)
    if isinstance(error, TrainerError):
        return int(error.exit_code)
    return int(ExitCode.USAGE if isinstance(error, TyperException) else ExitCode.BUG)
