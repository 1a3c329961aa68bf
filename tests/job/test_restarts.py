"""The first process of a restarted job: how often it starts again, and that a signal reaches the child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import os, signal, sys, time
from pathlib import Path
from trainer.errors import ExitCode
from trainer.job.restarts import run_with_restarts
from trainer.job.supervisor import JobEnd

starts = Path(sys.argv[1])

def start():
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    count = len(starts.read_text().split())
    {body}

sys.exit(int(run_with_restarts(start, {restarts})))
"""

CASES = {
    "done": ("return JobEnd(ExitCode.DONE)", 3, 1, 0),
    "failed for good": ("return JobEnd(ExitCode.JOB)", 3, 1, 6),
    "goes on": (
        "return JobEnd(ExitCode.DONE if count == 3 else ExitCode.JOB, can_go_on=count < 3)",
        3,
        3,
        0,
    ),
    "goes on too often": ("return JobEnd(ExitCode.JOB, can_go_on=True)", 2, 3, 6),
    "killed": (
        "os.kill(os.getpid(), signal.SIGKILL) if count < 3 else None; return JobEnd(ExitCode.DONE)",
        3,
        3,
        0,
    ),
    "always killed": ("os.kill(os.getpid(), signal.SIGKILL)", 1, 2, 6),
    "fails early": ("return JobEnd(ExitCode.UNAVAILABLE)", 3, 1, 3),
    # A fork has the flag of its parent, which is in no sandbox: no process of its user may trace it.
    "cannot be traced": (
        "from trainer.sandbox.privileges import is_dumpable; return JobEnd(ExitCode(6 * is_dumpable()))",
        1,
        1,
        0,
    ),
    "leaves an orphan": ("os.fork() or os._exit(7); return JobEnd(ExitCode.DONE)", 3, 1, 0),
}


def script(body: str, restarts: int) -> str:
    return CHILD.replace("{body}", body).replace("{restarts}", str(restarts))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_starts_and_exit_code(case: tuple[str, int, int, int], tmp_path: Path) -> None:
    body, restarts, starts, code = case
    ended = subprocess.run(
        [sys.executable, "-c", script(body, restarts), tmp_path / "starts"], check=False, timeout=60
    )
    assert len((tmp_path / "starts").read_text().split()) == starts
    assert ended.returncode == code


KILLED_EVENTS = {
    "always killed": "interrupted",
    "killed for memory": "out-of-memory",
    "crashed": "internal-error",
    "fails early": None,
    "killed": None,
}


@pytest.mark.parametrize("name", KILLED_EVENTS)
def test_what_the_public_log_ends_with(name: str, tmp_path: Path) -> None:
    """A child that was killed for good is the parent's to report; the kernel's counter says if memory was it."""
    kill, counter = "os.kill(os.getpid(), signal.{})", tmp_path / "kills"
    more = {
        "killed for memory": (
            f"Path({str(counter)!r}).write_text('1'); " + kill.format("SIGKILL"),
            0,
        ),
        "crashed": (kill.format("SIGSEGV"), 0),
    }
    body, restarts = more[name] if name in more else CASES[name][:2]
    counting = f"""
import trainer.job.restarts
trainer.job.restarts.oom_kills = lambda: int(Path({str(counter)!r}).exists())
"""
    text = script(body, restarts).replace("starts = Path", counting + "starts = Path", 1)
    ended = subprocess.run(
        [sys.executable, "-c", text, tmp_path / "starts"],
        check=False,
        timeout=60,
        capture_output=True,
    )
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(event["event"], event["code"]) for event in events] == (
        [("failed", KILLED_EVENTS[name])] if KILLED_EVENTS[name] else []
    )


def child_of(starts: Path) -> int:
    while not (starts.exists() and starts.read_text().strip()):
        time.sleep(0.02)
    return int(starts.read_text().split()[0])


def test_sigterm_reaches_the_child_and_ends_the_restarts(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(6 | 64)); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script(body, 3), tmp_path / "starts"]) as parent:
        child_of(tmp_path / "starts")
        time.sleep(0.2)  # for the child's handler
        parent.terminate()
        assert parent.wait(30) == 6
    assert len((tmp_path / "starts").read_text().split()) == 1


def test_the_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", script("time.sleep(60)", 3), tmp_path / "starts"]
    ) as parent:
        child = child_of(tmp_path / "starts")
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{child}"):  # noqa: PTH110
        assert time.monotonic() < deadline
        time.sleep(0.05)
