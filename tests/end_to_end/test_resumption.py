"""A job that was ended or killed and is started again goes on from its sealed checkpoint, to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import CANARY, Agent, Provider, command_beside, starting_jobs
from tests.end_to_end.test_interruptions import (
    free_port,
    pull_failure,
    start_training,
)
from trainer.attestation.result.record import load_record

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, StartJob, Trainer, WriteSpec
    from tests.fork_server import ForkServer


def adapter_of(job: Job, provider: Provider, trainer: Trainer, record: Path, folder: Path) -> bytes:
    """Verify once more (another start has another TLS key), pull, acknowledge and open; the job ends with 0."""
    url, now = f"https://127.0.0.1:{job.wait_event(event='listening')['port']}", folder / "now.json"
    job.wait_event(event="phase", phase="awaiting-pull")
    verified = trainer("verify", url, "--policy", provider.policy_file, "-o", now)
    assert verified.code == 0, verified.err
    pulled = provider.pull(url, now, folder / "result.age", record)
    assert pulled.code == 0, pulled.err
    assert job.wait() == 0
    opened = provider.open(folder / "result.age", folder / "out", record)
    assert opened.code == 0, opened.err
    return (folder / "out" / "adapter" / "adapter_model.safetensors").read_bytes()


FINISHED = {"deletion.json", "end.sealed", "result.tar.age"}
"""What a job that succeeded leaves in its ciphertext directory."""

SAVING = {"max_steps": 90, "save_steps": 5, "eval_steps": 15, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def saving(write_spec: WriteSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec with checkpoints, and a port that stays the same from start to start."""
    port = free_port()
    return write_spec(
        tmp_path_factory.mktemp("saving") / "job.yaml",
        data={"packing": True},
        lora={"lora_dropout": 0.1},
        train=SAVING,
        exchange={"port": port},
    )


@pytest.fixture(scope="module")
def expected(
    saving: Path,
    agent: Agent,
    trainer: Trainer,
    stack_server: ForkServer,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> bytes:
    """The adapter of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "provider").mkdir()
    provider = Provider(folder / "provider", trainer, agent)
    with starting_jobs(folder, agent, stack_server) as start_job:
        job: Job = start_job(saving)
        record = start_training(job, provider, data, folder)
        job.wait_for_step("checkpoint-sealed")
        assert len(list(job.ciphertext.glob("checkpoint-*.age"))) <= 2
        adapter = adapter_of(job, provider, trainer, record, folder)
        assert {path.name for path in job.ciphertext.iterdir()} == FINISHED, "the job is done"
    return adapter


def resumed_step(job: Job) -> int:
    """The step behind which a restarted job goes on."""
    step = job.wait_event(event="resumed")["step"]
    assert isinstance(step, int)
    assert job.wait_for_step("progress") > step
    return step


def test_told_to_end_and_started_again_it_ends_in_the_same_bits(
    expected: bytes, saving: Path, start_job: StartJob, kms_provider: Provider, trainer: Trainer, data: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """With the derived key the job needs nobody: its sealed upload still lies there."""
    provider, agent = kms_provider, kms_provider.agent.socket
    job: Job = start_job(saving, guest_agent=agent)
    record = start_training(job, provider, data, tmp_path, "--recipient", "derived")
    job.wait_for_step("checkpoint-sealed")
    job.process.terminate()
    job.wait_event(event="failed", code="interrupted")
    report = pull_failure(job, provider, trainer, record, tmp_path)
    sealed = sorted(job.ciphertext.glob("checkpoint-*.age"))
    assert report["checkpoint_step"] == int(sealed[-1].stem.rpartition("-")[2]) >= 5
    assert all(CANARY.encode() not in path.read_bytes() for path in sealed)

    again: Job = start_job(saving, "--ciphertext-dir", job.ciphertext, guest_agent=agent)
    step = resumed_step(again)
    assert step == report["checkpoint_step"]
    folder = tmp_path / "again"
    folder.mkdir()
    assert adapter_of(again, provider, trainer, record, folder) == expected
    first, second = (
        load_record(path.read_bytes()).result.recipient for path in (record, folder / "now.json")
    )
    assert first == second, "the derived key is the same where the spec is"
    summary = json.loads((folder / "out" / "report" / "summary.json").read_bytes())
    assert summary["resumed_at"] == [step]
    assert {path.name for path in job.ciphertext.iterdir()} == FINISHED


def test_killed_and_started_again_it_goes_on_once_it_was_verified_again(
    expected: bytes, saving: Path, start_job: StartJob, provider: Provider, trainer: Trainer, data: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Sealed to the instance key, which died with the VM: the same `submit` grants it again, twice, in kilobytes.

    All starts are as a container makes them; the adapter is that of the forked job that nothing interrupts.
    """
    job: Job = start_job(saving, started_anew=True)
    provider.keygen()
    result = tmp_path / "result"
    provider.policy(saving)
    command = [*provider.submission(job, data, result), "--json"]
    with command_beside(tmp_path / "told", *command) as end:
        job.wait_for_step("checkpoint-sealed")
        job.process.kill()
        job.process.wait(20)
        second: Job = start_job(saving, "--ciphertext-dir", job.ciphertext, started_anew=True)
        first_step = resumed_step(second)
        second.process.kill()
        second.process.wait(20)
        again: Job = start_job(saving, "--ciphertext-dir", job.ciphertext, started_anew=True)
        told = end()
    assert again.wait() == 0
    assert "waiting up to 15 min" in told
    assert told.count("grant the dataset again") == 2
    assert told.count("bytes sent in place of the dataset") == 2
    assert told.count("upload the sealed dataset") == told.count("check and seal the dataset") == 1
    assert {"event": "phase", "phase": "awaiting-grant"}.items() <= again.wait_event(
        phase="awaiting-grant"
    ).items()
    assert resumed_step(again) >= first_step >= 5
    assert (result / "adapter" / "adapter_model.safetensors").read_bytes() == expected
