"""The demo's child processes: each is printed as a shell command, has a time limit, and is ended on every exit."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

GRACE_SECONDS: Final = 7.0
"""How long a process may take to end after a signal, in seconds."""


class DemoError(Exception):
    """The demo failed; the message says why."""


class Deadline:
    """The time limit of the demo, in seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def bounded(self, seconds: float) -> float:
        """Return `seconds`, or the remaining time if that is less.

        Raises:
            DemoError: no time remains.
        """
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise DemoError("out of time; hint: --timeout gives more")
        return min(seconds, remaining)


class Processes:
    """Runs commands in the foreground and in the background; leaving the context ends all of them.

    Args:
        out: stream for commands and their output.
        logs: directory for the output of background processes.
        deadline: limits every wait.
    """

    def __init__(self, out: TextIO, logs: Path, deadline: Deadline) -> None:
        self._out = out
        self._logs = logs
        self._deadline = deadline
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._running):  # clients before the servers that they use
            end(process)

    def say(self, text: str = "") -> None:
        """Print a line."""
        self._out.write(text + "\n")
        self._out.flush()

    def background(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in its own session; its output goes to NAME.stdout and NAME.stderr in `logs`."""
        self.say(f"$ {shlex.join(command)} &")
        with (
            (self._logs / f"{name}.stdout").open("wb") as out,
            (self._logs / f"{name}.stderr").open("wb") as err,
        ):
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        self._running.append(process)
        return process

    def foreground(
        self, *command: str, seconds: float, shown: bool = True, as_json: bool = False
    ) -> list[str]:
        """Run a command to its end and return the lines that it printed.

        Args:
            command: program and arguments.
            seconds: time limit.
            shown: whether the command and its output are printed.
            as_json: the last line is a JSON object and is not printed.

        Raises:
            DemoError: the command failed or exceeded the limit.
        """
        if shown:
            self.say(f"$ {shlex.join(command)}")
        limit = self._deadline.bounded(seconds)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._running.append(process)
        with _Limit(process, limit) as ran_out:
            lines = self._follow(process, shown=shown, as_json=as_json)
            code = process.wait()
        self._running.remove(process)
        if code != 0:
            reason = (
                f"took more than {limit:.0f} s"
                if ran_out.is_set()
                else f"ended with exit code {code}"
            )
            raise DemoError(f"`{shlex.join(command[:2])} …` {reason}")
        return lines

    def _follow(self, process: subprocess.Popen[bytes], *, shown: bool, as_json: bool) -> list[str]:
        lines = []
        with process.stdout or io.BytesIO() as stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                lines.append(line)
                if shown and not (as_json and line.startswith("{")):
                    self.say(line)
        return lines

    def wait_until(
        self, what: str, process: subprocess.Popen[bytes], found: Path, text: str, *, seconds: float
    ) -> str:
        """Wait until a background process has written a line with `text` into `found`; returns the line.

        With an empty `text`, wait until the file exists.

        Raises:
            DemoError: the process ended first, or the time limit passed.
        """
        end_at = time.monotonic() + self._deadline.bounded(seconds)
        while time.monotonic() < end_at:
            if found.exists() and (not text or (line := _line_with(found, text))):
                return line if text else ""
            if process.poll() is not None:
                last = f"its last word: {_last_line(found)}" if text else f"see {self._logs}"
                raise DemoError(
                    f"{what}: its process ended with exit code {process.returncode}; {last}"
                )
            time.sleep(0.1)
        raise DemoError(f"{what}: nothing in {seconds:.0f} s; see {self._logs}")

    def wait(self, process: subprocess.Popen[bytes], *, seconds: float) -> int:
        """Wait for a background process to end and return its exit code.

        Raises:
            DemoError: it does not end within the time limit.
        """
        try:
            return process.wait(self._deadline.bounded(seconds))
        except subprocess.TimeoutExpired:
            raise DemoError(
                f"process {process.pid} did not end in {seconds:.0f} s; see {self._logs}"
            ) from None


class _Limit:
    """Ends a process after a time limit; the event that the context yields is set if that happened."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._ran_out = threading.Event()
        self._timer = threading.Timer(seconds, self._stop)

    def __enter__(self) -> threading.Event:
        self._timer.start()
        return self._ran_out

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _stop(self) -> None:
        self._ran_out.set()
        end(self._process)


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return lines[-1] if lines else "none"


def _line_with(path: Path, text: str) -> str:
    lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    return next((line for line in lines if text in line and line.endswith("\n")), "")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with SIGTERM, and with SIGKILL if it does not end; then kill its descendants.

    SIGTERM is sent twice: after the first one, a job seals a failure report and waits for it to be pulled.
    """
    if process.poll() is not None:
        return
    below = descendants(process.pid)
    for send_signal in (process.terminate, process.terminate, process.kill):
        send_signal()
        try:
            process.wait(GRACE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    for pid, started in below:
        if started and started_at(pid) == started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[tuple[int, str]]:
    """Return the descendants of `pid` with their start times.

    Process ids are reused; id and start time together name one process.
    """
    found: list[tuple[int, str]] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [(child, started_at(child)), *descendants(child)]
    return found


def started_at(pid: int) -> str:
    """Return a process's start time in clock ticks since boot (proc(5), stat, field 22), or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def raise_on_termination() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, so that context managers clean up.

    SIGINT needs a handler too: a background job of a shell starts with SIGINT ignored.
    """

    def interrupt(number: int, _frame: object) -> None:
        sys.stderr.write(f"demo: ended by signal {number}\n")
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
