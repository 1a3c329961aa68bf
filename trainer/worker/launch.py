"""Several processes that train together: made, fed and watched by one that reads no row.

That one makes a network that holds nothing but `lo`, makes the others by fork, which no process can once it is
confined, and confines itself like them. It hands each the order, passes on what the first of them says, and ends
when one is lost: the kernel then ends the rest, for they end with the process that made them. SIGTERM it passes on
to the first, which writes down the state of all. Nobody here may signal another: a byte in a pipe stands for it.
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
    to_worker_channel,
    worker_channel,
)
from trainer.sandbox import privileges
from trainer.sandbox.confine import confine, own_loopback
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.properties import SandboxReport
from trainer.training.rank import ProcessRank, rendezvous_dir

GRACE_SECONDS: Final = 20.0
"""So long the others may take, after one failed or was lost, to say what they know of it."""

_UNEXPLAINED: Final = frozenset({ErrorCode.WORKER_DIED, ErrorCode.INTERNAL})
"""How losing another process looks to those that are left."""

Work = Callable[[ProcessRank, WorkerChannel], ExitCode]
"""What each process does: takes an order from stdin, and sends its messages."""


@dataclass
class RankProcess:
    """One of the processes, as the one that made it sees it.

    Attributes:
        pid: its process.
        channel: where its order is sent and its messages arrive.
        told: what is written here tells it to end.
        failure: what it said went wrong.
        finished: whether it said that all is done.
        status: how it ended, as `waitpid` puts it; None while it lives.
    """

    pid: int
    channel: Channel[Message, WorkerInstruction]
    told: int
    failure: Failed | None = None
    finished: bool = False
    status: int | None = None

    def receive(self) -> list[Message]:
        """What it has said by now; at its end, `status` is set."""
        messages = self.channel.receive_available()
        if messages is None:
            self.status = os.waitpid(self.pid, 0)[1]
            return []
        return messages

    def tell(self) -> None:
        """Tell it to end."""
        with suppress(OSError):  # it is gone, or was told so often that the pipe is full
            os.write(self.told, b".")


def launch(size: int, plan: SandboxPlan | None, channel: WorkerChannel, work: Work) -> ExitCode:
    """Have `size` processes do the work.

    Args:
        size: more than one.
        plan: what this process and each of them is confined to; None leaves all as they are.
        channel: to the supervisor: the walls that stand around every one, then what the first process says.
        work: the work of one process.

    Raises:
        JobError: what one of them failed with; `WORKER_DIED`: one was lost; `SANDBOX_INCOMPLETE`: a network of
            their own cannot be had, and nothing was started.
    """
    if plan is not None:
        _own_loopback()
    members: list[RankProcess] = []
    for rank in range(size):
        members.append(_fork(ProcessRank(rank, size), members, work))
    if plan is not None:
        sandbox = confine(plan, in_own_network=True)
        channel.send(Confined(sandbox=_common(sandbox, members)))
    order = channel.receive()
    if not isinstance(order, TrainingOrder):
        raise UsageError(ErrorCode.USAGE, "the supervisor sent no training order")
    place = rendezvous_dir(order.output_dir)
    place.mkdir(mode=0o700)
    signal.signal(signal.SIGTERM, lambda *_signal: members[0].tell())
    try:
        for member in members:
            _hand(member, order)
        for message in _followed(members):
            channel.send(message)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return ExitCode.DONE


def _own_loopback() -> None:
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


def _fork(seat: ProcessRank, earlier: Sequence[RankProcess], work: Work) -> RankProcess:
    """Make one process; it holds its own ends of its own pipes and nobody else's."""
    order_read, order_write = os.pipe()
    said_read, said_write = os.pipe()
    told_read, told_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    maker = os.getpid()
    pid = os.fork()
    if pid == 0:
        for member in earlier:
            member.channel.close()
        for descriptor in (order_write, said_read, told_write, *(member.told for member in earlier)):
            os.close(descriptor)
        os.dup2(order_read, sys.stdin.fileno())
        os.close(order_read)
        _listen(told_read)
        _be_member(seat, maker, worker_channel(STDIN, said_write), work)
    for descriptor in (order_read, said_write, told_read):
        os.close(descriptor)
    return RankProcess(pid, to_worker_channel(said_read, order_write), told_write)


def _listen(told: int) -> None:
    """Have the kernel send this process SIGIO for a byte in the pipe, and take it for SIGTERM."""
    signal.signal(signal.SIGIO, signal.getsignal(signal.SIGTERM))
    fcntl.fcntl(told, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(told, fcntl.F_SETFL, fcntl.fcntl(told, fcntl.F_GETFL) | os.O_ASYNC)


def _be_member(seat: ProcessRank, maker: int, channel: WorkerChannel, work: Work) -> NoReturn:
    code = ExitCode.BUG
    try:
        privileges.end_with_parent()
        if os.getppid() == maker:
            code = work(seat, channel)
    finally:
        sys.stderr.flush()
        os._exit(code)  # nothing of the process that this one was copied from is to be wound up


def _common(own: SandboxReport, members: Sequence[RankProcess]) -> SandboxReport:
    """The walls that stand around every one."""
    reports = [own, *(_first_word(member) for member in members)]
    return {wall: all(report.get(wall, False) for report in reports) for wall in own}


def _first_word(member: RankProcess) -> SandboxReport:
    """The walls it measured; whoever waits for ours limits the time."""
    while member.status is None:
        for message in member.receive():
            if isinstance(message, Confined):
                return message.sandbox
            if isinstance(message, Failed):
                raise message.as_error()
    raise JobError(ErrorCode.WORKER_DIED, "a process did not confine itself", hint="see job.log")


def _hand(member: RankProcess, order: TrainingOrder) -> None:
    """Send the order; a process that is gone is noticed where its messages end."""
    with suppress(JobError):
        member.channel.send(order)
    member.channel.close_sending()


def _followed(members: Sequence[RankProcess]) -> Iterator[Message]:
    """What the first one says, until all have finished.

    Raises:
        JobError: one failed or was lost; the rest have had their time to say why.
    """
    deadline: float | None = None
    while not all(member.status is not None for member in members):
        for member in _speaking(members, deadline):
            for message in member.receive():
                if isinstance(message, Failed):
                    member.failure = message
                elif member is members[0]:
                    yield message
                member.finished = member.finished or isinstance(message, Finished)
            if _is_lost(member) and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            break
    if deadline is not None:
        raise _verdict(members)


def _speaking(members: Sequence[RankProcess], deadline: float | None) -> list[RankProcess]:
    """Those that said something, or ended; none where the deadline passes first."""
    waiting = select.poll()
    living = {member.channel.fileno(): member for member in members if member.status is None}
    for descriptor in living:
        waiting.register(descriptor, select.POLLIN)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return [living[descriptor] for descriptor, _ in waiting.poll(left)]


def _is_lost(member: RankProcess) -> bool:
    return member.failure is not None or (member.status is not None and not member.finished)


def _verdict(members: Sequence[RankProcess]) -> JobError:
    """Of all that went wrong, what explains the rest: a plain failure, or else a process that vanished."""
    failures = [member.failure for member in members if member.failure is not None]
    plain = [failure for failure in failures if failure.code not in _UNEXPLAINED]
    vanished = [number for number, member in enumerate(members) if _is_lost(member) and member.failure is None]
    if plain:
        return plain[0].as_error()
    if vanished:
        return _vanished(vanished[0], members)
    return min(failures, key=lambda failure: failure.code is ErrorCode.WORKER_DIED).as_error()


def _vanished(rank: int, members: Sequence[RankProcess]) -> JobError:
    code = os.waitstatus_to_exitcode(members[rank].status or 0)
    return JobError(
        ErrorCode.WORKER_DIED,
        f"process {rank + 1} of {len(members)} ended without a word",
        expected="a result or a failure",
        found=f"signal {-code}" if code < 0 else f"exit code {code}",
        hint="signal 9 usually means that the VM ran out of memory" if code == -signal.SIGKILL else None,
    )
