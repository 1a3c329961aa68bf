"""Runs the provider's commands in forks of one process that has imported them already.

Most of a command's time goes into imports. Each command still is a process of its own, with its own descriptors,
environment, directory and exit code. Requests come as JSON lines on stdin; answers are exit codes, one a line.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
from typing import Any


def import_commands() -> None:
    """Imports what the commands import when they are called."""
    for package in ("trainer.cli", "trainer.provider"):
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            importlib.import_module(found.name)


def carry_out(request: dict[str, Any]) -> int:
    """Runs one command in this process and returns its exit code."""
    signal.alarm(request["seconds"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    out, err = (os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for name in ("out", "err"))
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
        os.close(source)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    from trainer.cli.app import run_command_line

    return run_command_line(request["arguments"])


def main() -> None:
    """Serves until stdin ends."""
    import_commands()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            sys.exit(carry_out(json.loads(line)))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
