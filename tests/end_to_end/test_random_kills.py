"""Any process of a job is killed at any moment: no plaintext is left, and what can go on ends in the same bits.

A few kills here; `scripts/soak kills` makes hundreds, of processes that start as in a container, and sets the
environment variables below.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import CANARY
from tests.end_to_end.test_interruptions import children, free_port, wait_until

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob, Trainer, WriteSpec

KILLS = int(os.environ.get("SOAK_KILLS", "2"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
"""No further kill is begun after this time."""

MOMENTS = ("listening", "phase", "dataset-received", "progress", "checkpoint-sealed")
"""Public events after which a process is killed; each comes in every job."""
VICTIMS = ("submit", "supervisor", "trainer.front", "trainer.worker")
SUBMIT_CODES = {0, 3, 6, -signal.SIGKILL}
END_SECONDS = 120.0


def adapter_in(result: Path) -> bytes:
    return (result / "adapter" / "adapter_model.safetensors").read_bytes()


def submit(provider: Provider, data: Path, url: str, result: Path) -> subprocess.Popen[bytes]:
    policy = provider.folder / "policy.yaml"
    command = [
        "submit", str(data), "--job-url", url, "--policy", str(policy), "-i", str(provider.identity),
        "-o", str(result),
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def nothing_readable(job: Job) -> None:
    """Asserts that no row of the dataset is in what the job printed or keeps on the operator's disk."""
    places = [job.out, job.err, *(path for path in job.ciphertext.rglob("*") if path.is_file())]
    assert [path for path in places if CANARY.encode() in path.read_bytes()] == []


def kill_once(
    victim: str, moment: str, delay: float, *, job: Job, submitting: subprocess.Popen[bytes]
) -> dict[str, int]:
    """Kill `victim` at `delay` seconds after an event; returns the process ids of the job at that time."""
    wait_until(
        lambda: job.process.poll() is not None or any(event["event"] == moment for event in job.events),
        END_SECONDS,
    )
    time.sleep(delay)  # any moment is a good one: nothing waits for this time
    running = children(job.process.pid) if job.process.poll() is None else {}
    pids = {**running, "supervisor": job.process.pid, "submit": submitting.pid}
    with suppress(ProcessLookupError, KeyError):
        if victim != "submit" or submitting.poll() is None:
            os.kill(pids[victim], signal.SIGKILL)
    return running


@pytest.mark.timeout(SECONDS + 1200)
def test_killed_at_random(
    start_job: StartJob, write_spec: WriteSpec, provider: Provider, trainer: Trainer, data: Path, tmp_path: Path
) -> None:
    rng, port = Random(SEED), free_port()
    spec = write_spec(
        tmp_path / "job.yaml",
        train={"max_steps": 30, "save_steps": 5},
        output={"samples": 0},
        exchange={"port": port, "linger_seconds": 5},
    )
    start = partial(start_job, started_anew="SOAK_KILLS" in os.environ)
    url = f"https://127.0.0.1:{port}"
    provider.keygen()
    provider.policy(spec)

    def whole(job: Job, result: Path) -> bytes:
        """The adapter of a submission that ends well."""
        job.wait_event(event="phase", phase="awaiting-dataset")
        with submit(provider, data, url, result) as submitting:
            assert submitting.wait(END_SECONDS) == 0
        assert job.wait() == 0
        assert list(job.workspace.iterdir()) == []
        return adapter_in(result)

    expected = whole(start(spec), tmp_path / "whole")
    begun, outcomes = time.monotonic(), []
    for number in range(KILLS):
        if time.monotonic() - begun > SECONDS:
            break
        victim = VICTIMS[number % len(VICTIMS)] if number < len(VICTIMS) else rng.choice(VICTIMS)
        moment, delay, result = rng.choice(MOMENTS), rng.random(), tmp_path / f"result{number}"
        job: Job = start(spec)
        job.wait_event(event="listening")
        with submit(provider, data, url, result) as submitting:
            running = kill_once(victim, moment, delay, job=job, submitting=submitting)
            if victim != "submit":
                job.wait(END_SECONDS)
                wait_until(
                    lambda running=running: not any(Path(f"/proc/{pid}").exists() for pid in running.values())
                )
            code = submitting.wait(END_SECONDS)
        assert code in SUBMIT_CODES, (victim, moment, delay)
        nothing_readable(job)
        if code == 0:
            assert adapter_in(result) == expected
        elif victim == "submit":
            assert whole(job, result) == expected
        elif victim == "supervisor":
            again: Job = start(spec, "--ciphertext-dir", job.ciphertext)
            assert whole(again, result) == expected
        else:  # the job says that it failed, and keeps nothing
            assert job.wait() == 6, (victim, moment, delay)
            assert list(job.workspace.iterdir()) == []
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait(20)
        outcomes.append((victim, moment, code))
    print(f"kills: {len(outcomes)} of {KILLS}, seed {SEED}")
    assert outcomes
