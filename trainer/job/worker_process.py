"""The supervisor's side of the worker: starts it, sends its order, follows its messages, ends it.

The worker reads rows that a stranger may have written, so what it sends is treated as hostile input: any line that
is not a message of `worker_messages` counts as the death of the worker.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Final, Protocol

from pydantic import JsonValue

from trainer.errors import ErrorCode, JobError, UnavailableError
from trainer.ipc import worker_messages as protocol
from trainer.ipc.channel import Channel
from trainer.job import child_process as children
from trainer.job.workspace import Workspace
from trainer.logs import private
from trainer.sandbox.child_environment import allocator_variables
from trainer.sandbox.plan import SandboxPlan
from trainer.sandbox.properties import SandboxReport
from trainer.spec import JobSpec

CONFINED_SECONDS: Final = 60.0
"""Time for a worker to confine itself after its start."""

SAVE_SECONDS: Final = 20.0
"""Time for an interrupted worker to write its state before it is killed."""


class Follower(Protocol):
    """Handles the messages of a worker that trains."""

    def wait_seconds(self) -> float | None:
        """Returns the seconds until `release` has something to do; None if it has nothing to do."""

    def release(self) -> None:
        """Does what is due."""

    def take(self, message: protocol.TrainingMessage) -> None:
        """Handles a message."""

    def finish(self) -> None:
        """Releases what is left after the last message."""


class WorkerProcess:
    """A worker that has been started and waits for its order.

    Args:
        process: the child.
        channel: the supervisor's end of its control channel.
        preparation: what the worker may load before the order comes; None for several ranks.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: Channel[protocol.Message, protocol.WorkerInstruction],
        preparation: protocol.Preparation | None = None,
    ) -> None:
        self._process = process
        self._channel = channel
        self._prepares = preparation is not None
        if preparation is not None:
            self._send(preparation)

    def wait_confined(self) -> SandboxReport:
        """Waits for the worker's first message: the sandbox properties that it measured after it confined itself.

        Raises:
            JobError: the worker failed, ended, sent another message first, or none within `CONFINED_SECONDS`.
        """
        try:
            message = self._channel.receive(timeout=CONFINED_SECONDS)
        except UnavailableError:
            message = None
        if isinstance(message, protocol.Confined):
            return message.sandbox
        if isinstance(message, protocol.Failed):
            raise message.as_error()
        raise JobError(
            ErrorCode.WORKER_DIED, "the worker did not confine itself", hint="see job.log"
        )

    def announce_model(self) -> None:
        """Tells the worker that the base model has been checked: it can load it before there is a dataset."""
        if self._prepares:
            self._send(protocol.ModelReady())

    def train(self, order: protocol.TrainingOrder, follow: Follower) -> Mapping[str, JsonValue]:
        """Has the worker carry out the order; returns the worker's summary (private).

        Args:
            order: the only order that the worker takes.
            follow: gets each message before the last, in order, and is called when it has something to release.

        Raises:
            JobError: the worker reported a failure (`DataError` if a row caused it), or died.
        """
        self._send(order)
        self._channel.close_sending()
        try:
            while (message := self._next_message(follow)) is not None:
                match message:
                    case protocol.Finished():
                        return message.summary
                    case protocol.Failed():
                        raise message.as_error()
                    case protocol.Confined():
                        # The properties are attested by now: a second report could only contradict the claims.
                        raise JobError(ErrorCode.WORKER_DIED, "the worker was confined twice")
                    case _:
                        follow.take(message)
        finally:
            follow.finish()
        raise protocol.silent_exit("the worker", self._process.wait())

    def _next_message(self, follow: Follower) -> protocol.Message | None:
        """Waits for a message, and releases what is due before it: no worker decides when that is."""
        while True:
            follow.release()
            try:
                return self._channel.receive(timeout=follow.wait_seconds())
            except UnavailableError:
                continue

    def interrupt(self) -> None:
        """Asks the worker to save its state and end; kills it after `SAVE_SECONDS`. Returns at once."""
        self._process.terminate()
        killer = threading.Timer(SAVE_SECONDS, self._process.kill)
        killer.daemon = True
        killer.start()

    def end(self) -> None:
        """Ends the worker, by force if it does not end by itself."""
        children.stop_process(self._process)

    def _send(self, instruction: protocol.WorkerInstruction) -> None:
        try:
            self._channel.send(instruction)
        except JobError as error:
            # Too large to be sent: the worker is alive and would wait.
            if error.code is not ErrorCode.WORKER_DIED:
                raise
            # Its last message, or its exit code, says more than a broken pipe: reading reports the failure.
            private.warning("the worker ended before it read its instruction")


class StandbyWorker:
    """A worker that has been started and reads, imports and confines nothing before it begins.

    Args:
        process: the child.
        channel: the supervisor's end of its control channel.
        begin_fd: writing end of its stdin, which the channel owns; None for one that does not wait.
        preparation: what the worker may load before the order comes; None for several ranks.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: Channel[protocol.Message, protocol.WorkerInstruction],
        begin_fd: int | None,
        preparation: protocol.Preparation | None,
    ) -> None:
        self._process = process
        self._channel = channel
        self._begin_fd = begin_fd
        self._preparation = preparation

    def begin(self) -> WorkerProcess:
        """Has the process become a worker, which confines itself as its first act."""
        if self._begin_fd is not None:
            with suppress(BrokenPipeError):  # it has ended: `wait_confined` reports that
                os.write(self._begin_fd, b"\n")
        return WorkerProcess(self._process, self._channel, self._preparation)


@contextmanager
def worker_process(
    workspace: Workspace, plan: SandboxPlan, spec: JobSpec
) -> Iterator[WorkerProcess]:
    """Runs a worker for the time of the context.

    Args:
        workspace: contains its log and its home directory.
        plan: what it confines itself to before it sends its first message.
        spec: the job spec, with which it can prepare itself before there is an order.
    """
    with _started_worker(workspace, plan, spec, standby=False) as started:
        yield started.begin()


@contextmanager
def standby_worker(
    workspace: Workspace, plan: SandboxPlan, spec: JobSpec
) -> Iterator[StandbyWorker]:
    """Has a worker stand by for the time of the context, since this process can start none later.

    Args:
        workspace: of the try that it is for.
        plan: what it confines itself to once it has begun.
        spec: the job spec.
    """
    with _started_worker(workspace, plan, spec, standby=True) as started:
        yield started


@contextmanager
def _started_worker(
    workspace: Workspace, plan: SandboxPlan, spec: JobSpec, *, standby: bool
) -> Iterator[StandbyWorker]:
    preparation = None
    if plan.processes == 1:  # of several ranks, none reads anything before the order
        preparation = protocol.Preparation(
            spec=spec, model_dir=workspace.model, output_dir=workspace.output
        )
    stdin_reading, stdin_writing = os.pipe()
    events_reading, events_writing = os.pipe()
    channel = protocol.to_worker_channel(events_reading, stdin_writing)
    allocator = {} if plan.gpu else allocator_variables()
    arguments = ["--events-fd", str(events_writing), "--plan-json", plan.model_dump_json()]
    arguments += ["--processes", str(plan.processes)]
    with closing(channel):
        try:
            with workspace.private_log.open("ab") as log:
                process = children.start_module(
                    "trainer.worker",
                    arguments,
                    environment=children.clean_environment(workspace.scratch, allocator),
                    log=log,
                    pass_fds=[events_writing],
                    stdin=stdin_reading,
                    standby=standby,
                )
        finally:
            # Only the child may hold these ends: otherwise its death would not show as an end of file here.
            os.close(stdin_reading)
            os.close(events_writing)
        try:
            yield StandbyWorker(process, channel, stdin_writing if standby else None, preparation)
        finally:
            children.stop_process(process)
