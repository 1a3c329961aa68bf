"""Announces the end of a long wait: by an HTTP POST, or by a command of the user's own.

Who gets it learns which command ended, its exit code, and a public error code: nothing of data, job or paths. A
notification that fails is reported and changes nothing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import httpx

from trainer.errors import ErrorCode, UsageError

LIMIT_SECONDS: Final = 15.0
"""Longest time that a notification takes."""


@dataclass(frozen=True)
class Notice:
    """What is announced.

    Attributes:
        command: name of the command that ended.
        exit_code: its exit code.
        error: public code of the error that ended it; None without one.
    """

    command: str
    exit_code: int
    error: str | None

    @property
    def text(self) -> str:
        """The notice as a sentence."""
        if self.exit_code == 0:
            return f"trainer {self.command} is done"
        error = f" ({self.error})" if self.error else ""
        return f"trainer {self.command} ended with exit code {self.exit_code}{error}"


def require_target(target: str) -> None:
    """Requires that a target can work, before a wait of hours.

    Raises:
        UsageError: neither an http or https URL nor a command that exists.
    """
    if _is_url(target):
        return
    words = _split(target)
    if not words or shutil.which(words[0]) is None:
        raise UsageError(
            ErrorCode.USAGE,
            "--notify",
            expected="an http:// or https:// URL, or a command",
            found=words[0] if words else "no command",
            hint="a command runs without a shell; its last argument is a sentence that says how it ended",
        )


def send_notice(target: str, notice: Notice) -> str | None:
    """Posts a notice to a URL as JSON, or runs a command with its sentence as the last argument.

    Returns:
        Why that failed, without the target, which may contain a password; None if it did not.
    """
    return _post(target, notice) if _is_url(target) else _run(_split(target), notice)


def _is_url(target: str) -> bool:
    return target.startswith(("https://", "http://"))


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quote without its end
        return []


def _post(url: str, notice: Notice) -> str | None:
    def post() -> str | None:
        try:
            # The body of the answer is not read.
            body = {"text": notice.text, **asdict(notice)}
            with httpx.stream("POST", url, json=body, timeout=LIMIT_SECONDS) as answer:
                return None if answer.is_success else f"status {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as error:
            return type(error).__name__

    return _within_limit(post)


def _within_limit(send: Callable[[], str | None]) -> str | None:
    """Returns what `send` returns, or that it took too long: a peer can send an answer byte by byte."""
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(send()), daemon=True)
    thread.start()
    thread.join(LIMIT_SECONDS)
    return outcome[0] if outcome else _too_slow()


def _run(words: Sequence[str], notice: Notice) -> str | None:
    quiet = subprocess.DEVNULL  # stdout and stderr belong to the result
    environment = os.environ | {"TRAINER_EXIT_CODE": str(notice.exit_code)}
    try:
        ended = subprocess.run(
            [*words, notice.text],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            env=environment,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _too_slow()
    except OSError as error:
        return error.strerror or type(error).__name__
    return f"exit code {ended.returncode}" if ended.returncode else None


def _too_slow() -> str:
    return f"it took more than {LIMIT_SECONDS:g} s"
