"""Secrets of the operator leave the environment before anything else happens, and wait in a pipe.

Any process of the same user can read the environment that a process was started with, as long as it runs
(/proc/PID/environ, proc(5)); changing the environment from inside does not change that file. So `trainer run` with
such a variable starts itself again without it, before it imports anything.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import MutableMapping
from contextlib import suppress


def is_job() -> bool:
    """Returns whether this program was called to run a job."""
    return "run" in sys.argv[1:]


def start_again_with(content: bytes, pipe_variable: str) -> None:
    """Starts this program again with `content` in a pipe, whose descriptor a variable names."""
    reading, writing = os.pipe()
    os.write(writing, content)  # less than a pipe holds, or nobody would ever read
    os.close(writing)
    os.set_inheritable(reading, True)
    os.environ[pipe_variable] = str(reading)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 -- no shell is wanted


def read_pipe(
    environment: MutableMapping[str, str], pipe_variable: str, limit: int
) -> bytes | None:
    """Returns what `start_again_with` put aside, once, at most `limit` bytes; None if it was not called."""
    number = environment.pop(pipe_variable, "")
    if not re.fullmatch("[0-9]{1,4}", number):
        return None
    with suppress(OSError):  # the operator can set the variable: then it may name anything
        if stat.S_ISFIFO(os.fstat(int(number)).st_mode):
            with open(int(number), "rb") as pipe:  # noqa: PTH123 -- a descriptor
                return pipe.read(limit)
    return b""
