"""`--notify`: how the end of a command with a long wait is announced, whatever ends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.cli.console import print_line
from trainer.cli.exit_codes import INTERRUPTED, as_trainer_error, exit_code_of
from trainer.errors import TrainerError


@contextmanager
def notify_at_end(target: str | None, command: str) -> Iterator[None]:
    """Announces the end of what runs in it; that fails in one line on stderr, and changes no exit code.

    Args:
        target: URL or command; None announces nothing.
        command: name of the command.

    Raises:
        UsageError: the target cannot work.
    """
    if target is None:
        yield
        return
    from trainer.provider import notification

    notification.require_target(target)
    code, public = 0, None
    try:
        yield
    except BaseException as error:
        code = exit_code_of(error)
        known = as_trainer_error(error) if isinstance(error, OSError) else error
        public = known.code.value if isinstance(known, TrainerError) else None
        raise
    finally:
        # Who pressed Ctrl-C knows.
        if code != INTERRUPTED:
            problem = notification.send_notice(target, notification.Notice(command, code, public))
            if problem is not None:
                print_line(f"the notification failed: {problem}", err=True)
