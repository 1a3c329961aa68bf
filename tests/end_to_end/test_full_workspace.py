"""A workspace that fills up while the worker writes into it: a code of its own, under seal, and nothing left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.test_interruptions import LONG, pull_failure, start_training

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob, Trainer, WriteSpec

SIZE = 4 << 20


@pytest.fixture
def small_tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Four mebibytes of memory, where the job's workspace goes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    monkeypatch.setenv("TEST_TMPFS", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no block free."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 12)):
                pass
        except OSError:
            return


def test_a_worker_without_room_becomes_a_sealed_report(
    small_tmpfs: Path,
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    job: Job = start_job(write_spec(tmp_path / "job.yaml", train={**LONG, "max_steps": 200}))
    record = start_training(job, provider, trainer, data, tmp_path)
    fill(small_tmpfs)
    job.wait_event(event="failed", code="workspace-full")
    report = pull_failure(job, provider, trainer, record, tmp_path)
    assert report["code"] == "workspace-full"
