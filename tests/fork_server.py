"""Runs modules of the product in forks of a process that has imported them.

Imports take up to five seconds of processor time in each process of a job; a test whose subject is not the start
of a process needs none of them again. Each fork still is a process of its own: descriptors, directory, variables,
sandbox and exit code, and in `/proc` the arguments and variables with which it would have been started. The start
itself, with the interpreter's own import path and exit, is what tests see that start processes anew.

`ForkServer` is the test's side.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from trainer.worker.environment import QUIET

ROOT = Path(__file__).parents[1]
MAX_MESSAGE_BYTES: Final = 1 << 17
MAX_DESCRIPTORS: Final = 8
ABOVE_ALL: Final = 512
"""No descriptor of a server has this number or a higher one."""

ROOM: Final = "-" * (1 << 16)
"""An argument and a variable of the server: their places are where those of a fork are shown."""

POLL_SECONDS: Final = 0.05


class ForkServer:
    """Starts processes and waits for them; several threads may.

    Args:
        requests: the connection to the server.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._codes: dict[int, int] = {}
        self._turn = threading.Lock()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        descriptors: Mapping[int, int],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path = ROOT,
    ) -> ForkedProcess:
        """Starts `python -m module`.

        Args:
            module: what the server has imported is not imported again.
            arguments: those of the module.
            descriptors: number in the process → descriptor in this one. Its stdin is empty where none is given.
            environment: all variables of the process; by default those of this one.
            directory: where it starts.
        """
        request = {
            "module": module,
            "arguments": list(arguments),
            "numbers": list(descriptors),
            "environment": dict(os.environ if environment is None else environment),
            "directory": str(directory),
        }
        with self._turn:
            self._requests.settimeout(None)
            socket.send_fds(
                self._requests, [json.dumps(request).encode()], list(descriptors.values())
            )
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
        with self._turn, suppress(BlockingIOError):
            self._requests.settimeout(0)
            while pid not in self._codes:
                self._receive()
        return self._codes.get(pid)

    def wait(self, pid: int, seconds: float | None) -> int:
        """Returns the exit code of a process; negative: the signal that killed it.

        Raises:
            TimeoutError: it still runs after that many seconds.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while (code := self.poll(pid)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            # Another thread may be the one that reads.
            select.select([self._requests], [], [], POLL_SECONDS)
        return code


class ForkedProcess:
    """A process that a server forked."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended after the last line
                os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Returns the exit code; None if it runs."""
        return self._server.poll(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code as `ForkServer.wait` does."""
        return self._server.wait(self.pid, timeout)

    def terminate(self) -> None:
        """Asks the process to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process by force."""
        self.send_signal(signal.SIGKILL)


@contextmanager
def forking(*names: str) -> Iterator[ForkServer]:
    """Runs a server that has imported these modules and packages; ends it with the context."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), *names, ROOM]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "ROOM": ROOM}
    with (
        ours,
        subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=variables, cwd=ROOT
        ),
    ):
        theirs.close()
        yield ForkServer(ours)
        ours.shutdown(socket.SHUT_RDWR)


def import_all(name: str) -> None:
    """Imports a module, and of a package of the product all modules in it but entry points."""
    module = importlib.import_module(name)
    packages = module.__path__ if name.startswith("trainer.") else ()
    for found in pkgutil.walk_packages(packages, f"{name}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)


def serve(requests: socket.socket) -> None:
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
                request, descriptors, _, _ = socket.recv_fds(
                    requests, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS
                )
                if not request:
                    return
                pid = os.fork()
                if pid == 0:
                    numbers = (wanted := json.loads(request)).pop("numbers")
                    run_module(descriptors=dict(zip(numbers, descriptors, strict=True)), **wanted)
                for descriptor in descriptors:
                    os.close(descriptor)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                requests.send(str(pid).encode())


def run_module(
    module: str,
    arguments: Sequence[str],
    descriptors: Mapping[int, int],
    environment: Mapping[str, str],
    directory: str,
    *,
    standby: bool = False,
) -> NoReturn:
    """Is `python -m module` from here on, in a fork; on standby, once a byte came on stdin."""
    code = 1
    try:
        _take_descriptors(descriptors)
        if standby and not os.read(0, 1):
            sys.exit()
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # it follows from the variables
        show_start([sys.executable, "-m", module, *arguments], environment)
        sys.argv = [module, *arguments]
        faulthandler.enable()
        _load_in_one_thread()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 -- as the interpreter does, whatever it is
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not up through what the fork has copied


def _load_in_one_thread() -> None:
    """Has transformers load weights without its pool of threads, in which a forked worker once waited for ever.

    Processes that are started anew load them as they do outside of tests.
    """
    loading = sys.modules.get("transformers.core_model_loading")
    if loading is not None:
        is_true = loading.is_env_variable_true
        switch = "HF_DEACTIVATE_ASYNC_LOAD"
        loading.is_env_variable_true = lambda name: name == switch or is_true(name)  # type: ignore[attr-defined]


def _take_descriptors(descriptors: Mapping[int, int]) -> None:
    """Gives each descriptor its number, and closes all others but the three that every process has."""
    moved = {
        number: fcntl.fcntl(old, fcntl.F_DUPFD, ABOVE_ALL) for number, old in descriptors.items()
    }
    os.closerange(3, ABOVE_ALL)
    for number, descriptor in moved.items():
        os.dup2(descriptor, number)
        os.close(descriptor)


def show_start(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Writes arguments and variables where /proc/PID/cmdline and environ read them, see proc_pid_stat(5).

    The variables that the C library knows must lie elsewhere by then: where they go once they are set again.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    places = [int(field) for field in fields[45:49]]
    variables = [f"{name}={value}" for name, value in environment.items()]
    for start, end, strings in ((places[0], places[1], words), (places[2], places[3], variables)):
        text = b"".join(os.fsencode(string) + b"\0" for string in strings)
        assert len(text) < end - start
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def main(arguments: list[str]) -> None:
    """Imports what is named, then serves."""
    number, *names, _ = arguments
    os.environ.update(QUIET)  # what libraries read when they are imported
    for name in names:
        import_all(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"  # noqa: PTH208
    gc.collect()
    gc.freeze()  # a collection in a fork would write to, and so copy, the memory of all that was imported
    with socket.socket(fileno=int(number)) as connection:
        serve(connection)


if __name__ == "__main__":
    main(sys.argv[1:])
