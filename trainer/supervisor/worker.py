"""The worker process as the supervisor sees it: gives it one order, follows its messages, ends it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from trainer.errors import ErrorCode, JobError
from trainer.logs import private
from trainer.spec import JobSpec
from trainer.supervisor import children
from trainer.supervisor.workspace import Workspace
from trainer.worker import protocol

Follower = Callable[[protocol.Progress | protocol.Metrics], None]


def train(
    spec: JobSpec, data_files: Mapping[str, Path], workspace: Workspace, follow: Follower
) -> Mapping[str, JsonValue]:
    """Run the worker to its end; returns its summary (private).

    Args:
        spec: the job spec.
        data_files: name of each data file → where it lies in the workspace.
        workspace: where the model lies, the output goes, and the log is.
        follow: called with each progress and metrics message, in order.

    Raises:
        JobError: the worker reported a failure (`DataError` where a row is to blame), or died.
    """
    order = protocol.Order(
        spec=spec, model_dir=workspace.model, data_files=dict(data_files), output_dir=workspace.output
    )
    with _worker_process(order, workspace) as (process, messages):
        for message in messages:
            match message:
                case protocol.Finished():
                    return message.summary
                case protocol.Failed():
                    raise message.as_error()
                case _:
                    follow(message)
        code = process.wait()
    raise JobError(
        ErrorCode.WORKER_DIED,
        "the worker ended without a word",
        expected="a result or a failure",
        found=f"signal {-code}" if code < 0 else f"exit code {code}",
        hint="signal 9 usually means that the VM ran out of memory" if code == -9 else None,
    )


@contextmanager
def _worker_process(
    order: protocol.Order, workspace: Workspace
) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[protocol.Message]]]:
    reading, writing = os.pipe()
    with workspace.private_log.open("ab") as log:
        process = children.start_module(
            "trainer.worker",
            ["--events-fd", str(writing)],
            environment=children.clean_environment(workspace.scratch),
            log=log,
            pass_fds=[writing],
            stdin=subprocess.PIPE,
        )
    os.close(writing)
    try:
        _give(process, order)
        with os.fdopen(reading, "rb") as stream:
            yield process, _messages(stream)
    finally:
        children.end(process)


def _give(process: subprocess.Popen[bytes], order: protocol.Order) -> None:
    if process.stdin is None:
        raise AssertionError("the worker was started without a pipe")
    try:
        process.stdin.write(order.encode())
        process.stdin.close()
    except BrokenPipeError:
        private.warning("the worker ended before it read its order")


def _messages(stream: IO[bytes]) -> Iterator[protocol.Message]:
    while line := stream.readline(protocol.MAX_MESSAGE_BYTES + 1):
        yield protocol.parse_message(line)
