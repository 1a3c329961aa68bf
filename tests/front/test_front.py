"""The front process by itself: how it waits, and how it ends."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.front.conftest import StartFront
from trainer.ipc.front_messages import Shutdown


def pauses(pid: int) -> int:
    """How often its first thread has gone to sleep (proc(5), voluntary_ctxt_switches)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


def pauses_in_a_second(pid: int) -> int:
    before = pauses(pid)
    time.sleep(1.0)
    return pauses(pid) - before


def test_while_nothing_happens_it_sleeps(start_front: StartFront) -> None:
    idle = start_front(started_anew=True, heartbeat_seconds=60.0)
    assert idle.ready.port
    # It may still be coming up in the first.
    seconds = (pauses_in_a_second(idle.process.pid) for _ in range(5))
    assert any(found <= 2 for found in seconds)


def test_it_ends_when_told_so_and_for_a_signal(start_front: StartFront) -> None:
    told, signalled = (start_front(started_anew=True) for _ in range(2))
    assert told.ready.port
    assert signalled.ready.port
    told.send(Shutdown())
    assert told.process.wait(5) == 0
    signalled.process.send_signal(signal.SIGTERM)
    assert signalled.process.wait(5) == -signal.SIGTERM
