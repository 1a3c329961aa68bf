"""The test's side of `tests/training/worker_server.py`: a worker that it forked, followed to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from trainer.ipc.worker_messages import FROM_WORKER, TO_WORKER, Progress, TrainingOrder

ROOT = Path(__file__).parents[2]
VARIABLES = {"OMP_NUM_THREADS": "1", "HF_ENDPOINT": "", "WANDB_MODE": "online"}
"""What a worker of the tests starts with besides the environment of the tests."""

ANSWER_BYTES = 16


class ForkedWorker:
    """A worker process whose parent is the server.

    Args:
        server: takes requests.
        files: stdin, stdout, stderr, and where messages go.
        arguments: the worker's, without that of the descriptor for messages.
        environment: the variables that the worker starts with.
    """

    def __init__(
        self,
        server: socket.socket,
        files: Sequence[IO[bytes] | int],
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment)})
        descriptors = [file if isinstance(file, int) else file.fileno() for file in files]
        socket.send_fds(server, [request.encode()], descriptors)
        self._server = server
        self._code: int | None = None
        self.pid = int(server.recv(ANSWER_BYTES))

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker, which must not have been waited for."""
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> int:
        """Return the worker's exit code once it has ended; negative: the signal that killed it.

        Raises:
            TimeoutError: it still runs after that many seconds.
        """
        if self._code is None:
            self._server.settimeout(seconds)
            self._code = int(self._server.recv(ANSWER_BYTES))
            self._server.settimeout(None)
        return self._code

    def kill(self) -> None:
        """End the worker by force, if it has not been waited for, and wait for it."""
        if self._code is None:
            with suppress(ProcessLookupError):  # it ended by itself, and the server has waited for it
                self.send_signal(signal.SIGKILL)
            self.wait()


@contextmanager
def in_training(
    server: socket.socket, order: TrainingOrder, processes: int
) -> Iterator[tuple[ForkedWorker, IO[bytes]]]:
    """Fork a worker; yields it after its first step, with its further messages. Kills it at the end."""
    read, write = os.pipe()
    with TemporaryFile() as instructions, Path(os.devnull).open("r+b") as nothing:
        instructions.write(TO_WORKER.encode(order))
        instructions.seek(0)
        files = (instructions, nothing, nothing, write)
        worker = ForkedWorker(server, files, ["--processes", str(processes)], {**os.environ, **VARIABLES})
    os.close(write)
    with os.fdopen(read, "rb") as events:
        while not isinstance(FROM_WORKER.parse(events.readline()), Progress):
            pass
        yield worker, events
    worker.kill()


@contextmanager
def serving() -> Iterator[socket.socket]:
    """Start the server; yields the socket that `ForkedWorker` needs."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.training.worker_server", str(theirs.fileno())]
    with (
        ours,
        subprocess.Popen(command, pass_fds=(theirs.fileno(),), env={**os.environ, **VARIABLES}, cwd=ROOT),
    ):
        theirs.close()
        yield ours
        ours.shutdown(socket.SHUT_RDWR)
