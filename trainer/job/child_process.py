"""Starts and stops child processes: clean environment, no inherited descriptors, no process left over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from trainer.ipc.channel import Channel, Incoming, MessageFormat, Outgoing
from trainer.sandbox.child_environment import INHERITED_VARIABLES

TERMINATE_SECONDS: Final = 10.0
"""How long a child has to end after SIGTERM, before SIGKILL."""


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a child: variables of an allow list, and `home` for every temporary file.

    The operator sets this process's environment; a variable such as `LD_PRELOAD` would run the operator's code.
    """
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    # A library that writes a cache, also of plaintext, writes it inside the workspace, which is RAM.
    directories = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(home))
    python = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return {**inherited, **directories, **python, **(extra or {})}


_STANDBY: Final = """
import os, sys
if os.read(0, 1):
    os.execv(sys.argv[1], sys.argv[1:])
"""
"""Waits for a byte on stdin, then becomes the program of its arguments; ends if stdin ends first."""


def start_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: IO[bytes],
    pass_fds: Sequence[int] = (),
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    standby: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts `python -m module`; its stderr, and its stdout unless one is given, go to a private log.

    `-P` removes the working directory, which an operator may mount, from the import path. `-I` would also remove
    the user's site directory, where the package may be installed.

    Args:
        module: name of the module.
        arguments: its arguments.
        environment: all variables of the child.
        log: the private log.
        pass_fds: descriptors that the child inherits.
        stdin: descriptor that becomes the child's stdin.
        stdout: descriptor or file that becomes its stdout; None is the log.
        standby: the child imports nothing before it has read one byte from stdin.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    if standby:  # isolated and without site: it needs no module but two that are built in
        command = [sys.executable, "-I", "-S", "-c", _STANDBY, *command]
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=log if stdout is None else stdout,
        stderr=log,
        env=dict(environment),
        pass_fds=tuple(pass_fds),
        close_fds=True,  # no channel to another child
        start_new_session=True,  # a terminal's SIGINT reaches the supervisor only
        cwd="/",  # no relative path depends on a directory that the operator chose
    )


def start_on_channel(
    module: str,
    incoming: MessageFormat[Incoming],
    outgoing: MessageFormat[Outgoing],
    *,
    environment: Mapping[str, str],
    log: IO[bytes],
) -> tuple[subprocess.Popen[bytes], Channel[Incoming, Outgoing]]:
    """Starts `python -m module` with a channel on its stdin and stdout, see `stdio_channel`.

    Args:
        module: name of the module.
        incoming: the messages that the child sends.
        outgoing: the messages that it gets.
        environment: all variables of the child.
        log: the private log.
    """
    stdin_reading, stdin_writing = os.pipe()
    stdout_reading, stdout_writing = os.pipe()
    channel = Channel(stdout_reading, stdin_writing, incoming=incoming, outgoing=outgoing)
    try:
        process = start_module(
            module, [], environment=environment, log=log, stdin=stdin_reading, stdout=stdout_writing
        )
    except BaseException:
        channel.close()
        raise
    finally:
        os.close(stdin_reading)
        os.close(stdout_writing)
    return process, channel


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Stops a child: SIGTERM, then SIGKILL after `TERMINATE_SECONDS`. Returns after the child has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()  # reaps the child also if it had ended by itself
