"""Runs a module's `main` in forks of one process that has imported it: `python -m tests.fork_server FD MODULE`.

Half a second or more of processor time goes into the imports of each process of a job; a test that looks at what
such a process does needs none of them again. Each fork still is a process of its own: descriptors, memory and exit
code. `ForkServer` is the test's side.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_MESSAGE_BYTES = 1 << 16
DESCRIPTOR = "DESCRIPTOR"
"""Among the arguments: the number of the descriptor that the process is given besides its output."""


class ForkServer:
    """Starts processes and waits for them.

    Args:
        requests: the connection to the server.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._codes: dict[int, int] = {}

    def start(self, arguments: Sequence[str], output: int, descriptor: int) -> ForkedProcess:
        """Starts a process whose stdout and stderr are `output`."""
        socket.send_fds(self._requests, [json.dumps(list(arguments)).encode()], [output, descriptor])
        self._requests.settimeout(None)
        while (pid := self._receive()) is None:
            pass
        return ForkedProcess(self, pid)

    def _receive(self) -> int | None:
        """Returns the process id of a process that was started; None after noting the exit code of another."""
        pid, *code = map(int, self._requests.recv(MAX_MESSAGE_BYTES).split())
        if not code:
            return pid
        self._codes[pid] = code[0]
        return None

    def poll(self, pid: int) -> int | None:
        """Returns the exit code of a process; None if it runs."""
        self._requests.settimeout(0)
        with suppress(BlockingIOError):
            while pid not in self._codes:
                self._receive()
        return self._codes.get(pid)

    def wait(self, pid: int, seconds: float) -> int:
        """Returns the exit code of a process; negative: the signal that killed it.

        Raises:
            TimeoutError: it still runs after that many seconds.
        """
        deadline = time.monotonic() + seconds
        while pid not in self._codes:
            self._requests.settimeout(max(deadline - time.monotonic(), 0.001))
            self._receive()
        return self._codes[pid]


class ForkedProcess:
    """A process that a server forked."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, which must not have been waited for."""
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Returns the exit code; None if it runs."""
        return self._server.poll(self.pid)

    def wait(self, timeout: float = 20) -> int:
        """Returns the exit code as `ForkServer.wait` does."""
        return self._server.wait(self.pid, timeout)

    def kill(self) -> None:
        """Ends the process by force."""
        self.send_signal(signal.SIGKILL)


@contextmanager
def forking(module: str) -> Iterator[ForkServer]:
    """Runs a server; ends it with the context."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), module]
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),), cwd=ROOT):
        theirs.close()
        yield ForkServer(ours)
        ours.shutdown(socket.SHUT_RDWR)


def serve(requests: socket.socket, main: Callable[[list[str]], int]) -> None:
    """Forks a process for each request; answers with its process id, and with that and its code when it ends.

    Ends when the other end closes.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    _, status = os.waitpid(key.data, 0)
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    requests.send(f"{key.data} {os.waitstatus_to_exitcode(status)}".encode())
                    continue
                request, descriptors, _, _ = socket.recv_fds(requests, MAX_MESSAGE_BYTES, 2)
                if not request:
                    return
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    requests.close()
                    output, descriptor = descriptors
                    sys.exit(carry_out(json.loads(request), output, descriptor, main))
                for descriptor in descriptors:
                    os.close(descriptor)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                requests.send(str(pid).encode())


def carry_out(arguments: list[str], output: int, descriptor: int, main: Callable[[list[str]], int]) -> int:
    """Is the process from here on; returns its exit code."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return main([str(descriptor) if argument == DESCRIPTOR else argument for argument in arguments])


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection, importlib.import_module(sys.argv[2]).main)
