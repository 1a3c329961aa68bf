"""A ciphertext volume without room: the job says so before it trains; one `submit` goes on once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import command_beside
from tests.end_to_end.test_interruptions import free_port

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob, WriteSpec


def mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "volume"
    folder.mkdir()
    if not mount(folder, "size=16m"):
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_the_job_ends_before_training_and_the_running_submission_finishes(
    small_volume: Path,
    write_spec: WriteSpec,
    start_job: StartJob,
    provider: Provider,
    data: Path,
    tmp_path: Path,
) -> None:
    spec = write_spec(tmp_path / "job.yaml", train={"max_steps": 3}, exchange={"port": free_port()})
    job: Job = start_job(spec, "--ciphertext-dir", small_volume)
    provider.keygen()
    provider.policy(spec)
    command = [*provider.submission(job, data, tmp_path / "result"), "--json"]
    with command_beside(tmp_path / "printed", *command) as end:
        job.wait_event(event="failed", code="storage-full")
        assert job.wait() == 6
        job.wait_event(event="phase", phase="training")
        assert "progress" not in {event["event"] for event in job.events}

        assert mount(small_volume, "remount,size=256m")
        again: Job = start_job(spec, "--ciphertext-dir", small_volume)
        shown = end()
    assert again.wait() == 0
    assert "no room for the checkpoints and the result" in shown
    assert "the operator has to make room" in shown
    assert (tmp_path / "result" / "adapter" / "adapter_model.safetensors").exists()
    assert "no room" not in job.out.read_text() + job.err.read_text()  # for the provider alone
