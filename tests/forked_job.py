"""`trainer` as `tests/fork_server.py` runs it for a job: its processes are forks of it, not started anew.

They are forked where the supervisor starts processes, before it has a key or a thread, so they are its children in
the same order with the same descriptors. What the supervisor has set up for itself by then is undone in them.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.fork_server import run_module, show_start
from trainer.job import child_process
from trainer.logs import private


class ForkedChild:
    """A child of this process, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._reaping = threading.Lock()

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal; None if the child runs."""
        with self._reaping:
            if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
                self.returncode = os.waitstatus_to_exitcode(found[1])
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code once the child has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired("a child", timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def terminate(self) -> None:
        """Sends SIGTERM, if the child runs."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL, if the child runs."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def fork_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: IO[bytes],
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    standby: bool = False,
) -> ForkedChild:
    """Is `trainer.job.child_process.start_module` with a fork in the place of a start."""
    with Path(os.devnull).open("rb") as nothing:
        descriptors = {
            0: nothing.fileno() if stdin == subprocess.DEVNULL else stdin,
            1: log.fileno() if stdout is None else stdout,
            2: log.fileno(),
            **{number: number for number in pass_fds},
        }
        if (pid := os.fork()) == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            private.handlers.clear()
            run_module(module, arguments, descriptors, environment, "/", standby=standby)
    return ForkedChild(pid)


def main() -> None:
    """Runs a command of the operator."""
    from trainer.__main__ import main as run_command

    show_start([sys.executable, "-m", "trainer", *sys.argv[1:]], os.environ)
    child_process.start_module = fork_module  # type: ignore[assignment]
    run_command()


if __name__ == "__main__":
    main()
