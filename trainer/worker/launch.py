"""Starts several worker processes that train one model, and forwards their messages to the supervisor.

The launcher reads no row of the dataset. It works in this order:

1. It creates a network namespace that contains only `lo`, and forks one process for each rank. Both come before
   the sandbox, whose seccomp filter forbids them.
2. It enters the same sandbox as the ranks, and reports the sandbox properties that hold in every process.
3. It sends the training order to each rank and forwards the messages of rank 0.
4. It exits when a rank fails. The kernel then kills the other ranks, because each has set a parent-death signal.

On SIGTERM it interrupts rank 0, which writes the checkpoint of all ranks. The sandbox forbids `kill`, so the
launcher writes a byte to a pipe instead, and the kernel raises the signal in the process that owns the pipe's read
end.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn

from trainer.errors import ErrorCode, ExitCode, JobError, UsageError
from trainer.ipc.channel import STDIN, Channel
from trainer.ipc.worker_messages import (
    Confined,
    Failed,
    Finished,
    Message,
    TrainingOrder,
    WorkerChannel,
    WorkerInstruction,
    silent_exit,
    to_worker_channel,
    worker_channel,
)
from trainer.sandbox import privileges
from trainer.sandbox.confine import confine, own_loopback
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.properties import SandboxReport
from trainer.training.rank import ProcessRank, rendezvous_dir

GRACE_SECONDS: Final = 20.0
"""Time in which the other ranks may report their failures after one rank has failed or exited, in seconds."""

_UNEXPLAINED: Final = frozenset({ErrorCode.WORKER_DIED, ErrorCode.INTERNAL})
"""Codes that a rank reports when its connection to another rank breaks: a consequence, not the cause."""

Work = Callable[[ProcessRank, WorkerChannel], ExitCode]
"""Runs one rank: reads its order from stdin, sends its messages to the channel, returns the exit code."""


@dataclass
class RankProcess:
    """The launcher's view of one rank.

    Attributes:
        pid: process id.
        channel: sends the order and receives the messages.
        interrupt_fd: write end of the pipe that interrupts the rank.
        failure: the failure that the rank reported.
        finished: whether the rank sent `Finished`.
        status: wait status as `waitpid` returns it; None while the process runs.
    """

    pid: int
    channel: Channel[Message, WorkerInstruction]
    interrupt_fd: int
    failure: Failed | None = None
    finished: bool = False
    status: int | None = None

    def receive(self) -> list[Message]:
        """Returns the messages that have arrived. Sets `status` when the process has closed its channel."""
        messages = self.channel.receive_available()
        if messages is None:
            self.status = os.waitpid(self.pid, 0)[1]
            return []
        return messages

    def interrupt(self) -> None:
        """Raises SIGIO in the process, which handles it as SIGTERM."""
        with suppress(OSError):  # the process has exited, or the pipe is full of earlier interrupts
            os.write(self.interrupt_fd, b".")


def launch(size: int, plan: SandboxPlan | None, channel: WorkerChannel, work: Work) -> ExitCode:
    """Runs `work` in `size` processes; returns when all have finished.

    Args:
        size: number of ranks; at least 2.
        plan: sandbox of the launcher and of each rank; None runs them without one.
        channel: sends the sandbox report, then the messages of rank 0, to the supervisor.
        work: the work of one rank.

    Raises:
        JobError: the failure that a rank reported; `WORKER_DIED`: a rank exited without reporting one;
            `SANDBOX_INCOMPLETE`: no network namespace could be created, and no rank was started.
        UsageError: the supervisor sent no training order.
    """
    if plan is not None:
        _create_loopback_network()  # before the forks: ranks in separate namespaces could not reach each other
    ranks: list[RankProcess] = []
    for rank in range(size):
        ranks.append(_fork(ProcessRank(rank, size), ranks, work))
    if plan is not None:
        sandbox = confine(plan, in_own_network=True)
        # Reported before the order is read: the supervisor attests the report before the provider sends data.
        channel.send(Confined(sandbox=_common_properties(sandbox, ranks)))
    order = channel.receive()
    if not isinstance(order, TrainingOrder):
        raise UsageError(ErrorCode.USAGE, "the supervisor sent no training order")
    rendezvous = rendezvous_dir(order.output_dir)
    rendezvous.mkdir(mode=0o700)
    signal.signal(signal.SIGTERM, lambda *_signal: ranks[0].interrupt())
    try:
        for process in ranks:
            with suppress(JobError):  # the process has exited: `_forwarded_messages` detects that
                process.channel.send(order)
            process.channel.close_sending()
        for message in _forwarded_messages(ranks):
            channel.send(message)
    finally:
        shutil.rmtree(rendezvous, ignore_errors=True)
    return ExitCode.DONE


def _create_loopback_network() -> None:
    """Moves this process into a new network namespace with a loopback interface.

    Raises:
        JobError: `SANDBOX_INCOMPLETE`.
    """
    try:
        own_loopback()
    except OSError as error:
        raise JobError(
            ErrorCode.SANDBOX_INCOMPLETE,
            "several processes need a network of their own, and it cannot be had here",
            expected="the right to make a network namespace (CAP_SYS_ADMIN)",
            found=error.strerror,
            hint="set train.num_processes to 1, or give the container that capability",
        ) from error


def _fork(rank: ProcessRank, earlier: Sequence[RankProcess], work: Work) -> RankProcess:
    """Forks the process of one rank, with pipes for its order, its messages and its interrupts.

    The child closes every descriptor that belongs to the launcher or to an earlier rank. Otherwise a rank would
    hold the write ends of another rank's pipes: that rank would see no end of file, and the holder could send it
    an order.
    """
    order_read, order_write = os.pipe()
    message_read, message_write = os.pipe()
    # Non-blocking: the signal handler writes to this pipe and must return also when it is full.
    interrupt_read, interrupt_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    launcher_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        for process in earlier:
            process.channel.close()
        earlier_interrupts = (process.interrupt_fd for process in earlier)
        for descriptor in (order_write, message_read, interrupt_write, *earlier_interrupts):
            os.close(descriptor)
        os.dup2(order_read, sys.stdin.fileno())
        os.close(order_read)
        # The kernel raises SIGIO when the pipe becomes readable (O_ASYNC, fcntl(2)); it is handled as SIGTERM. The
        # handler first: the default action of SIGIO kills the process.
        signal.signal(signal.SIGIO, signal.getsignal(signal.SIGTERM))
        fcntl.fcntl(interrupt_read, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(
            interrupt_read, fcntl.F_SETFL, fcntl.fcntl(interrupt_read, fcntl.F_GETFL) | os.O_ASYNC
        )
        _run_rank_process(rank, launcher_pid, worker_channel(STDIN, message_write), work)
    for descriptor in (order_read, message_write, interrupt_read):
        os.close(descriptor)
    return RankProcess(pid, to_worker_channel(message_read, order_write), interrupt_write)


def _run_rank_process(
    rank: ProcessRank, launcher_pid: int, channel: WorkerChannel, work: Work
) -> NoReturn:
    """Runs one rank and exits; never returns to the code that called `launch`."""
    code = ExitCode.BUG
    try:
        # The launcher may have died before the parent-death signal was set, which then never comes: the
        # parent's id has changed in that case, and the rank must not run without a launcher.
        privileges.end_with_parent()
        if os.getppid() == launcher_pid:
            code = work(rank, channel)
    finally:
        sys.stderr.flush()
        # Skips the launcher's `finally` blocks and exit handlers, which the fork has copied.
        os._exit(code)


def _common_properties(own: SandboxReport, ranks: Sequence[RankProcess]) -> SandboxReport:
    """Returns for each sandbox property whether the launcher and all ranks have it.

    A property that a rank did not measure counts as absent: the claim holds for the least confined process.
    """
    reports = [own, *(_receive_report(process) for process in ranks)]
    return {name: all(report.get(name, False) for report in reports) for name in own}


def _receive_report(process: RankProcess) -> SandboxReport:
    """Waits for a rank's sandbox report. There is no timeout here: the supervisor limits the time for all reports.

    Raises:
        JobError: the rank reported a failure; `WORKER_DIED`: it exited.
    """
    while process.status is None:
        for message in process.receive():
            if isinstance(message, Confined):
                return message.sandbox
            if isinstance(message, Failed):
                raise message.as_error()
    raise JobError(ErrorCode.WORKER_DIED, "a process did not confine itself", hint="see job.log")


def _forwarded_messages(ranks: Sequence[RankProcess]) -> Iterator[Message]:
    """Yields the messages of rank 0, except failures, until all ranks have exited.

    Raises:
        JobError: a rank failed or exited early. Raised `GRACE_SECONDS` after the first failure was seen, or as
            soon as all ranks have exited: the first rank that fails is often not the one that caused the failure.
    """
    deadline: float | None = None
    while not all(process.status is not None for process in ranks):
        for process in _readable_processes(ranks, deadline):
            for message in process.receive():
                if isinstance(message, Failed):
                    process.failure = message
                elif process is ranks[0]:
                    yield message
                process.finished = process.finished or isinstance(message, Finished)
            if _has_failed(process) and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            break
    if deadline is not None:
        raise _verdict(ranks)


def _readable_processes(ranks: Sequence[RankProcess], deadline: float | None) -> list[RankProcess]:
    """Waits until a running rank has sent something or exited; returns [] if the deadline passes first."""
    poller = select.poll()
    running = {process.channel.fileno(): process for process in ranks if process.status is None}
    for descriptor in running:
        poller.register(descriptor, select.POLLIN)
    milliseconds = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return [running[descriptor] for descriptor, _ in poller.poll(milliseconds)]


def _has_failed(process: RankProcess) -> bool:
    return process.failure is not None or (process.status is not None and not process.finished)


def _verdict(ranks: Sequence[RankProcess]) -> JobError:
    """Returns the error that explains the others.

    A failure with a specific code comes first, then a rank that exited without reporting one. What is left are the
    failures of ranks that lost another rank; among these, `WORKER_DIED` says the least and comes last.
    """
    failures = [process.failure for process in ranks if process.failure is not None]
    specific = [failure for failure in failures if failure.code not in _UNEXPLAINED]
    silent = [
        number
        for number, process in enumerate(ranks)
        if _has_failed(process) and process.failure is None
    ]
    if specific:
        return specific[0].as_error()
    if silent:
        rank = silent[0]
        code = os.waitstatus_to_exitcode(ranks[rank].status or 0)
        return silent_exit(f"process {rank + 1} of {len(ranks)}", code)
    return min(failures, key=lambda failure: failure.code is ErrorCode.WORKER_DIED).as_error()
