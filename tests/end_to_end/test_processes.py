"""A whole job whose worker is two processes: the walls stand, and the adapter comes back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Provider, StartJob, Trainer, WriteSpec
from trainer.sandbox import privileges

pytestmark = pytest.mark.slow

WALLS = ["worker_no_network", "worker_own_network", "worker_no_programs", "worker_no_signals", "worker_no_tracing"]


def can_make_a_network() -> bool:
    """Tried in a child: this process keeps the network it has."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if privileges.leave_network() else 1)
    return os.waitpid(pid, 0)[1] == 0


def test_a_job_of_two_processes(
    tmp_path: Path, start_job: StartJob, provider: Provider, trainer: Trainer, write_spec: WriteSpec, data: Path
) -> None:
    if not can_make_a_network():
        pytest.skip("no network namespace can be made here")
    settings = {"engine": "transformers", "num_processes": 2, "per_device_train_batch_size": 2}
    spec = write_spec(tmp_path / "job.yaml", train=settings, tee={"sandbox": WALLS})
    job = start_job(spec)
    provider.keygen()
    policy = provider.policy(spec)
    url = job.url
    out = tmp_path / "out"
    done = trainer(
        "submit", data, "--job-url", url, "--policy", policy, "-i", provider.identity, "-o", out, "--json"
    )
    assert done.code == 0, done.err
    assert job.wait() == 0
    summary = json.loads((out / "report" / "summary.json").read_bytes())
    assert summary["environment"]["processes"] == "2"
    assert summary["steps"] == 4
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    assert list(job.workspace.iterdir()) == []
