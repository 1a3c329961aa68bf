"""The first process of a job that is restarted when one of its processes is lost.

The supervisor gives up the right to start processes before it has keys, so it cannot replace a worker that the
kernel killed. Nor can an exit code ask for it: Docker restarts a container on any code but 0, also after a failure
that another start would only repeat. So a parent waits here that starts the supervisor again, a bounded number of
times, when what it left can be gone on from. When it gives up on a child that was killed, it publishes why.
The parent holds no key, opens no file of the job and reads nothing that comes from outside;
the supervisor's sandbox keeps it from the parent as from every other process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Final

from trainer import logs
from trainer.errors import ErrorCode, ExitCode
from trainer.job.memory_limit import oom_kills
from trainer.job.supervisor import JobEnd
from trainer.sandbox import privileges

GOES_ON: Final = 64
"""Added to the exit code of a start that another start can go on from; seen by this parent alone."""

_EXIT_CODES: Final = frozenset(ExitCode)


def run_with_restarts(start: Callable[[], JobEnd], restarts: int) -> ExitCode:
    """Runs the job in a child process, and again after a start that another one can go on from.

    A child that was killed, by whoever, counts as such a start. SIGTERM is passed on, and ends the restarts.

    Args:
        start: runs the job once.
        restarts: how often the job is started again at most.
    """
    # The parent is not confined: what could trace it would be out of its own sandbox.
    privileges.refuse_tracing()
    parent = _Parent()
    while True:
        killed_before = oom_kills()
        status = parent.run(start)
        code = os.waitstatus_to_exitcode(status)
        if (code < 0 or code & GOES_ON) and restarts > 0 and not parent.terminated:
            restarts -= 1
            continue
        if code < 0 and not parent.terminated:
            # A child that was killed could not say so itself, and the public log would just end.
            why = ErrorCode.INTERRUPTED if -code == signal.SIGKILL else ErrorCode.INTERNAL
            if -code == signal.SIGKILL and oom_kills() > killed_before:
                why = ErrorCode.OUT_OF_MEMORY
            logs.PublicLog(sys.stdout)(logs.JobFailed(why))
        return ExitCode(code & ~GOES_ON) if code & ~GOES_ON in _EXIT_CODES else ExitCode.JOB


class _Parent:
    """Starts one child at a time and passes SIGTERM on to it.

    Attributes:
        terminated: whether SIGTERM arrived.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._child = 0
        signal.signal(signal.SIGTERM, self._terminate)

    def run(self, start: Callable[[], JobEnd]) -> int:
        """Runs `start` in a forked child; returns its wait status (waitpid(2))."""
        # Blocked until the child is known: a signal in between would reach neither.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        own_pid = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            privileges.end_with_parent()
            if os.getppid() != own_pid:
                os._exit(int(ExitCode.JOB))  # the parent ended before the kernel was told
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            end = start()
            # Ends by the same way as a process that was not forked.
            raise SystemExit(int(end.code) | (GOES_ON if end.can_go_on else 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        while True:
            # As a container's first process it also inherits, and has to reap, what other processes leave behind.
            pid, status = os.waitpid(-1, 0)
            if pid == self._child:
                self._child = 0
                return status

    def _terminate(self, *_signal: object) -> None:
        self.terminated = True
        if self._child:
            os.kill(self._child, signal.SIGTERM)
