"""Strings planted in everything private: jobs run well and fail in every way, and none comes out anywhere.

Each scenario is a real job with real processes, or a part of one. Searched afterwards, for every form that
`scripts/canary-scan` knows: stdout and stderr, every byte that the job's TLS connections answered, what crossed
the loopback interface, arguments and environments of all its processes, its ciphertext and spool directory,
home, and working directory; at the end every file on every disk that changed meanwhile. What is private and at
rest lies on a tmpfs, which must be empty when the job has ended.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.canary_places import Loopback, changed_files, disks, recorded_answers
from tests.end_to_end.canary_runs import STARTED_ANEW, Run, World
from tests.end_to_end.canary_scenarios import RUN_OF, RUNS

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Agent, WriteSpec
    from tests.fork_server import ForkServer

pytestmark = pytest.mark.slow

AT_LEAST = 30
AT_ONCE = 3
"""Jobs that run at the same time: a job waits a lot."""


@dataclass
class Outcome:
    """A scenario that was run: what came out, and what went wrong with the scenario itself."""

    run: Run
    error: str | None


@dataclass
class Session:
    """All scenarios of this test session, and what was watched around them."""

    world: World
    started: float
    outcomes: dict[str, Future[Outcome]]


@pytest.fixture(scope="module")
def session(
    request: pytest.FixtureRequest,
    agent: Agent,
    stack_server: ForkServer,
    write_spec: WriteSpec,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Session]:
    wanted = [
        str(item.callspec.params["scenario"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and "scenario" in item.callspec.params
    ]
    shm = Path(os.environ.get("TEST_TMPFS", "/dev/shm"))
    with ExitStack() as stack:
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="canaries-", dir=shm)))
        served = stack.enter_context(recorded_answers())
        loopback = _loopback()
        world = World(
            agent,
            stack_server,
            write_spec,
            tiny_model,
            tmp_path_factory.mktemp("disk"),
            memory,
            served,
            loopback,
        )
        started = time.time()
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(_unmount, world)
        names = dict.fromkeys(RUN_OF[scenario] for scenario in wanted)
        yield Session(world, started, {name: pool.submit(_play, name, world) for name in names})


def _loopback() -> Loopback | None:
    """A capture, where this user may make one."""
    try:
        loopback = Loopback()
    except PermissionError:
        return None
    loopback.start()
    return loopback


def _unmount(world: World) -> None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount = line.split(" ")[4]
        if mount.startswith((f"{world.disk}/", f"{world.memory}/")):
            subprocess.run(["umount", "--lazy", mount], check=True)


def _play(name: str, world: World) -> Outcome:
    run, error = Run(name, world), None
    try:
        RUNS[name](run)
    except pytest.skip.Exception:
        raise
    except BaseException:  # noqa: BLE001 -- the test of this scenario tells
        error = traceback.format_exc()
    finally:
        if hasattr(run, "job"):
            run.finish()
    return Outcome(run, error)


@pytest.mark.parametrize("scenario", RUN_OF)
def test_nothing_planted_comes_out(scenario: str, session: Session, canary_scan: Any) -> None:
    outcome = session.outcomes[RUN_OF[scenario]].result()
    run, world = outcome.run, session.world
    if outcome.error is not None:
        print((run.disk / "out").read_text(), (run.disk / "err").read_text())
        pytest.fail(outcome.error, pytrace=False)
    assert scenario in run.played
    search = canary_scan.Search(
        canary_scan.needles(run.canaries.all(), canary_scan.tokenizer_of(world.tiny_model))
    )
    ports = {port for port in (run.port, run.earlier_port) if port}

    # Stdout, stderr, ciphertext or spool, home, working directory.
    canary_scan.scan([str(run.disk)], search)
    for port in ports:
        search.content("answers over TLS", world.served.of(port))
        if world.loopback is not None:
            search.content("loopback", world.loopback.between(port))
    for words in run.processes.words:
        search.content("a process's arguments or environment", words)
    assert search.findings.hits == set()
    assert search.findings.unread == []

    # in memory while it ran, gone when it ended; never elsewhere
    assert list(run.workspace.iterdir()) == []
    places = (str(run.disk), str(run.workspace), str(run.private))
    assert [name for name in run.processes.written_to_disk() if not name.startswith(places)] == []
    _watched_indeed(run, world, ports)


def _watched_indeed(run: Run, world: World, ports: set[int]) -> None:
    """None of the above was empty for want of looking."""
    assert any(b"trainer\0run" in words for words in run.processes.words)
    if ports:
        assert any(b"trainer.front" in words for words in run.processes.words)
    for port in ports & set(world.served.by_port):
        assert b"HTTP/1.1 200" in world.served.of(port)
        if world.loopback is not None:
            assert world.loopback.between(port)
    stdout = (run.disk / "out").read_bytes()
    assert stdout.startswith(b'{"time"')


def test_the_disks_hold_none_of_it(
    session: Session, canary_scan: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever changed on any disk since the first job began; a marker proves that it was looked at.

    What the tests beside these write is left out: no job of this module knows their directory.
    """
    runs = [future.result().run for future in session.outcomes.values()]
    marker = session.world.disk / "marker"
    marker.write_text("marker-that-is-on-a-disk")
    canaries = [canary for run in runs for canary in run.canaries.all()]
    search = canary_scan.Search(
        canary_scan.needles(
            [*canaries, marker.read_text()], canary_scan.tokenizer_of(session.world.tiny_model)
        )
    )
    own = tmp_path_factory.getbasetemp()
    beside = {str(directory) for directory in own.parent.glob("popen-gw*") if directory != own}
    for disk in disks():
        for path in changed_files(disk, session.started, beside):
            canary_scan.scan_file(path, search)
    assert {hit.where for hit in search.findings.hits} == {str(marker)}


def test_the_capture_sees_what_crosses_the_loopback(session: Session, canary_scan: Any) -> None:
    """The watchers work: plain bytes over TCP are found, and no frame was dropped."""
    for future in session.outcomes.values():
        future.result()
    loopback = session.world.loopback
    if loopback is None:
        pytest.skip("only root may capture loopback traffic")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)) as client,
            server.accept()[0] as answering,
        ):
            answering.sendall(b"in the clear " * 100)
            assert client.recv(1 << 16)
    assert loopback.end() == 0
    assert loopback.between(port).count(b"in the clear") == 100
    search = canary_scan.Search(
        canary_scan.needles(
            [canary for f in session.outcomes.values() for canary in f.result().run.canaries.all()]
        )
    )
    for stream in (*loopback.streams.values(), loopback.other):
        search.content("loopback", bytes(stream))
    assert search.findings.hits == set()
    print(
        f"canaries: {len(session.outcomes)} runs, {search.findings.searched} bytes of loopback traffic, 0 hits"
    )


def test_there_are_enough_scenarios() -> None:
    assert len(RUN_OF) >= AT_LEAST
    assert set(RUNS) >= STARTED_ANEW
    assert shutil.which("mount")
