"""Workers that a `ForkServer` forks, followed to their end or into the middle of their training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile
from typing import IO

from tests.fork_server import ForkedProcess, ForkServer
from trainer.ipc.worker_messages import FROM_WORKER, TO_WORKER, Progress, TrainingOrder

VARIABLES = {"OMP_NUM_THREADS": "1", "HF_ENDPOINT": "", "WANDB_MODE": "online"}
"""What a worker of the tests starts with besides the environment of the tests."""


def fork_worker(
    server: ForkServer, instructions: bytes, options: Sequence[str], environment: Mapping[str, str]
) -> tuple[int, bytes, bytes, bytes]:
    """Runs a worker to its end; returns its exit code, its stdout, its stderr and its messages."""
    with ExitStack() as files:
        stdin, *written = (files.enter_context(TemporaryFile()) for _ in range(4))
        stdin.write(instructions)
        stdin.seek(0)
        numbers = dict(enumerate((stdin.fileno(), *(file.fileno() for file in written))))
        code = server.start(
            "trainer.worker", ["--events-fd", "3", *options], numbers, environment=environment
        ).wait()
        for file in written:
            file.seek(0)
        out, log, messages = (file.read() for file in written)
        return code, out, log, messages


@contextmanager
def in_training(
    server: ForkServer, order: TrainingOrder, processes: int
) -> Iterator[tuple[ForkedProcess, IO[bytes]]]:
    """Forks a worker; yields it after its first step, with its further messages. Kills it at the end."""
    read, write = os.pipe()
    with TemporaryFile() as instructions:
        instructions.write(TO_WORKER.encode(order))
        instructions.seek(0)
        options = ["--events-fd", "3", "--processes", str(processes)]
        nothing = os.open(os.devnull, os.O_RDWR)
        numbers = {0: instructions.fileno(), 1: nothing, 2: nothing, 3: write}
        worker = server.start(
            "trainer.worker", options, numbers, environment={**os.environ, **VARIABLES}
        )
    os.close(write)
    os.close(nothing)
    with os.fdopen(read, "rb") as events:
        while not isinstance(FROM_WORKER.parse(events.readline()), Progress):
            pass
        yield worker, events
    worker.kill()
    worker.wait()
