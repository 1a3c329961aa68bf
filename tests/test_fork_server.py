"""A process that a server forks is what `python -m` would have started, as far as anyone sees."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest

from tests.fork_server import ForkServer, forking
from tests.forked_job import fork_module
from trainer.job import child_process


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with forking() as running:
        yield running


def test_arguments_descriptors_and_exit_code(server: ForkServer, tmp_path: Path) -> None:
    read, write = os.pipe()
    (tmp_path / "given.json").write_text('{"a":  1}')
    with (tmp_path / "out").open("wb") as out:
        arguments = ["--compact", "given.json", f"/dev/fd/{write}"]
        process = server.start(
            "json.tool", arguments, {2: out.fileno(), write: write}, directory=tmp_path
        )
        os.close(write)
        assert os.read(read, 100) == b'{"a":1}\n'
    assert process.wait() == 0
    assert os.read(read, 1) == b"", "no other process holds the descriptor"
    os.close(read)
    assert process.poll() == 0
    process.kill()


def test_what_others_see_of_it_and_how_it_is_killed(server: ForkServer) -> None:
    read, write = os.pipe()
    variables = {"HOME": "/nowhere", "EMPTY": ""}
    waiting = server.start(
        "json.tool", ["--no-ensure-ascii", "-"], {0: read, 1: write}, environment=variables
    )
    other = server.start("json.tool", ["--nonsense"], {1: write, 2: write})
    assert other.wait(20) == 2
    assert waiting.poll() is None
    shown = Path(f"/proc/{waiting.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    seen = Path(f"/proc/{waiting.pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    assert set(seen) == {b"HOME=/nowhere", b"EMPTY="}
    assert shown == [sys.executable.encode(), b"-m", b"json.tool", b"--no-ensure-ascii", b"-"]
    with pytest.raises(TimeoutError):
        waiting.wait(0.01)
    waiting.kill()
    assert waiting.wait(20) == -signal.SIGKILL
    os.close(read)
    os.close(write)


def test_a_job_can_fork_whatever_it_would_start() -> None:
    started, forked = (
        set(signature(one).parameters) for one in (child_process.start_module, fork_module)
    )
    assert forked == started
