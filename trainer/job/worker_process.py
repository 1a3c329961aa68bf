"""The worker process as the supervisor sees it: gives it one order, follows its messages, ends it."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Final

from pydantic import JsonValue

from trainer.errors import ErrorCode, JobError
from trainer.ipc import worker_messages as protocol
from trainer.job import child_process as children
from trainer.job.workspace import Workspace
from trainer.logs import private
from trainer.sandbox.child_environment import allocator_variables
from trainer.sandbox.confine import Walls
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import JobSpec

Follower = Callable[[protocol.Progress | protocol.Metrics | protocol.Saved], None]

CONFINED_SECONDS: Final = 60.0
SAVE_SECONDS: Final = 20.0
"""How long a worker that is told to end may take to write its state down."""


class WorkerProcess:
    """A worker that has been started and waits for its order."""

    def __init__(
        self, process: subprocess.Popen[bytes], messages: IO[bytes], ahead: protocol.Preparation | None = None
    ) -> None:
        self._process = process
        self._messages = messages
        self._prepares = ahead is not None
        if ahead is not None:
            _write(process, ahead.encode())

    def wait_confined(self) -> Walls:
        """What it measured after it confined itself: its first word.

        Raises:
            JobError: it failed, ended, said something else, or said nothing in time.
        """
        readable = select.poll()
        readable.register(self._messages, select.POLLIN)
        if readable.poll(CONFINED_SECONDS * 1000):
            message = next(self._received(), None)
            if isinstance(message, protocol.Confined):
                return message.walls
            if isinstance(message, protocol.Failed):
                raise message.as_error()
        raise JobError(ErrorCode.WORKER_DIED, "the worker did not confine itself", hint="see job.log")

    def model_is_there(self) -> None:
        """Let it load the base model, which has been checked, while the job waits for a dataset."""
        if self._prepares:
            _write(self._process, protocol.MODEL_READY)

    def train(self, order: protocol.TrainingOrder, follow: Follower) -> Mapping[str, JsonValue]:
        """Have the order carried out; returns the worker's summary (private).

        Args:
            order: the one order it takes.
            follow: called with each message but the last, in order.

        Raises:
            JobError: the worker reported a failure (`DataError` where a row is to blame), or died.
        """
        _give(self._process, order)
        for message in self._received():
            match message:
                case protocol.Finished():
                    return message.summary
                case protocol.Failed():
                    raise message.as_error()
                case protocol.Confined():
                    raise JobError(ErrorCode.WORKER_DIED, "the worker was confined twice")
                case _:
                    follow(message)
        code = self._process.wait()
        raise JobError(
            ErrorCode.WORKER_DIED,
            "the worker ended without a word",
            expected="a result or a failure",
            found=f"signal {-code}" if code < 0 else f"exit code {code}",
            hint="signal 9 usually means that the VM ran out of memory" if code == -9 else None,
        )

    def interrupt(self) -> None:
        """Tell it to write its state down and end, and see to it that it does one of the two; returns at once."""
        self._process.terminate()
        killer = threading.Timer(SAVE_SECONDS, self._process.kill)
        killer.daemon = True
        killer.start()

    def end(self) -> None:
        """End it, whatever it does."""
        children.end(self._process)

    def _received(self) -> Iterator[protocol.Message]:
        while line := self._messages.readline(protocol.MAX_MESSAGE_BYTES + 1):
            yield protocol.parse_message(line)


@contextmanager
def worker_process(workspace: Workspace, plan: SandboxPlan, spec: JobSpec) -> Iterator[WorkerProcess]:
    """Run a worker for the time of the context.

    Args:
        workspace: where its log and its home are.
        plan: what it confines itself to before it says its first word.
        spec: what it can prepare itself for, behind its walls, before there is an order.
    """
    ahead = None
    if plan.processes == 1:  # several are handed their order by one that reads no further than that
        ahead = protocol.Preparation(spec=spec, model_dir=workspace.model, output_dir=workspace.output)
    reading, writing = os.pipe()
    with workspace.private_log.open("ab") as log:
        process = children.start_module(
            "trainer.worker",
            [
                "--events-fd",
                str(writing),
                "--plan-json",
                plan.model_dump_json(),
                "--processes",
                str(plan.processes),
                *(["--ahead"] if ahead else []),
            ],
            environment=children.clean_environment(workspace.scratch, {} if plan.gpu else allocator_variables()),
            log=log,
            pass_fds=[writing],
            stdin=subprocess.PIPE,
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        worker = WorkerProcess(process, stream, ahead)
        try:
            yield worker
        finally:
            worker.end()


def _give(process: subprocess.Popen[bytes], order: protocol.TrainingOrder) -> None:
    """The last thing it is told."""
    _write(process, order.encode())
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    if process.stdin is None:
        raise AssertionError("the worker was started without a pipe")
    try:
        process.stdin.write(data)
        process.stdin.flush()
    except BrokenPipeError:
        private.warning("the worker ended before it read what it was told")
