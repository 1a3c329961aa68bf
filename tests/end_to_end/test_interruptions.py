"""Whatever is killed, and whenever: nothing is lost that was finished, nothing leaks, and the provider is told."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.attestation.result.record import load_record

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, Ran, StartJob, Trainer, WriteSpec

MAY_BE_MISSING = {
    "separate_users", "swap_off", "worker_no_programs", "worker_no_signals",
    "supervisor_memory_locked", "front_memory_locked", "supervisor_own_network", "worker_own_network",
    "supervisor_files_confined", "front_files_confined", "worker_files_confined",
}  # fmt: skip
"""Walls that depend on what this machine permits; docs/decisions/0004-sandbox.md says on what."""

LONG = {"max_steps": 400}


def children(pid: int) -> dict[str, int]:
    """Module → process id of the Python processes that `pid` started; without workers that stand by (`-I`)."""
    found: dict[str, int] = {}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"-m" in words and b"-I" not in words:
                found[words[words.index(b"-m") + 1].decode()] = int(child)
    return found


def free_port() -> int:
    """A port that is free, and outside of those that the system gives to whoever asks for any."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_submit_goes_on_where_it_was_killed(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    spec = write_spec(tmp_path / "job.yaml", train={"max_steps": 60})
    job: Job = start_job(spec)
    provider.keygen()
    result, kept = tmp_path / "result", tmp_path / "result.submission"
    provider.policy(spec)
    command = [*provider.submission(job, data, result), "--json"]
    for milestone in ("attestation.json", "dataset.age", "uploaded"):
        with subprocess.Popen(
            [sys.executable, "-m", "trainer", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                wait_until(lambda milestone=milestone: (kept / milestone).exists())
            finally:
                process.kill()
        assert not result.exists()
    assert kept.stat().st_mode & 0o777 == 0o700
    other_data = tmp_path / "other.jsonl"
    other_data.write_text('{"text": "something else"}\n')
    other = trainer(*[str(other_data) if word == str(data) else word for word in command])
    assert other.code == 2, "another submission into the same directory is refused"
    assert "another submission is under way" in other.err

    ran: Ran = trainer(*command)
    assert ran.code == 0, ran.err
    assert "going on with the submission" in ran.err
    assert [event["event"] for event in job.events].count("dataset-received") == 1
    assert (result / "adapter" / "adapter_model.safetensors").exists()
    assert not kept.exists()
    assert job.wait() == 0


def start_training(job: Job, provider: Provider, data: Path, tmp_path: Path, *policy: str) -> Path:
    """Verify, seal and upload; returns the attestation result once the worker has begun."""
    record = provider.deliver(job, data, tmp_path, *policy)
    job.wait_for_step("progress")
    return record


def pull_failure(
    job: Job, provider: Provider, trainer: Trainer, record: Path, tmp_path: Path
) -> dict[str, object]:
    """Pull and open the failure report; the job ends with 6."""
    result = tmp_path / "result.age"
    pulled = provider.pull(job.url, record, result, record)
    assert pulled.code == 0, pulled.err
    assert job.wait() == 6
    opened = provider.open(result, tmp_path / "out", record)
    assert opened.code == 6
    report = json.loads((tmp_path / "out" / "report" / "failure.json").read_bytes())
    assert isinstance(report, dict)
    assert list(job.workspace.iterdir()) == []
    return report


def test_a_job_that_gets_no_dataset_ends_by_itself(
    start_job: StartJob, write_spec: WriteSpec, tmp_path: Path
) -> None:
    job: Job = start_job(write_spec(tmp_path / "job.yaml", exchange={"dataset_timeout_seconds": 1}))
    assert job.wait() == 6
    assert job.events[-1]["code"] == "dataset-timeout"
    assert list(job.workspace.iterdir()) == []


def test_the_three_processes_see_only_what_they_should(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    """The seams: the worker has no socket, the supervisor no inet socket, nobody inherits the guest agent's."""
    job: Job = start_job(write_spec(tmp_path / "job.yaml", train=LONG), started_anew=True)
    record = start_training(job, provider, data, tmp_path)
    pids = {"supervisor": job.process.pid, **children(job.process.pid)}
    internet = {
        line.split()[9]
        for pid in pids.values()  # each may have a network namespace of its own
        for table in ("tcp", "tcp6", "udp", "udp6")
        for line in _table(pid, table)
    }
    sockets = {name: _sockets(pid) for name, pid in pids.items()}
    assert sockets["trainer.worker"] == set()
    assert not sockets["supervisor"] & internet
    assert sockets["trainer.front"] & internet
    sandbox = load_record(record.read_bytes()).result.claims.sandbox
    assert sandbox["workspace_in_memory"]
    assert {name for name, stands in sandbox.items() if not stands} <= MAY_BE_MISSING
    environment = Path(f"/proc/{pids['trainer.worker']}/environ").read_bytes()
    assert str(tmp_path).encode() not in environment.replace(str(job.workspace).encode(), b"")


def _table(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]


def _sockets(pid: int) -> set[str]:
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}
