"""A whole job through an object store: no HTTP to the VM, and the store's credentials appear nowhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import CANARY, Job, Provider, StartJob, Trainer, WriteSpec
from tests.exchange.stores import ACCESS_KEY, SECRET_KEY, SeaweedServer, run_seaweed
from trainer.exchange.store_registry import open_store

pytestmark = pytest.mark.slow

STORE = "s3://trainer/jobs/first"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


def test_submit_through_a_store(
    server: SeaweedServer,
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    started_trainer: Trainer,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.keygen()
    spec = write_spec(
        tmp_path / "job.yaml",
        exchange={"store": STORE, "providers": [provider.public_key]},
        train={"save_steps": 2},
    )
    job: Job = start_job(spec, variables=server.environment)
    policy, output = provider.policy(spec), tmp_path / "out"
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    ran = started_trainer(
        "submit",
        data,
        "--via",
        STORE,
        "--policy",
        policy,
        "-i",
        provider.identity,
        "-o",
        output,
        "--json",
    )
    assert ran.code == 0, ran.err
    assert ran.json["receipt"]["job_spec_sha256"]
    assert ran.json["deletion"] is not None
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
    assert job.wait() == 0

    store = open_store(STORE, server.environment)
    status = json.loads(store.get("status.json", 9999) or b"")
    assert status["phase"] == "done", "the last status arrived as well"
    assert store.tag("dataset.age") is None, "the job has no more use for it"
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert not any(secret.encode() in content for content in contents)
    stored = [path.read_bytes() for path in (server.folder / "data").rglob("*") if path.is_file()]
    assert not any(CANARY.encode() in content for content in stored)


def test_after_a_restart_a_re_grant_goes_through_the_store(
    server: SeaweedServer,
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    started_trainer: Trainer,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.keygen()
    location = "s3://trainer/jobs/restarted"
    spec = write_spec(
        tmp_path / "job.yaml",
        exchange={"store": location},
        train={"max_steps": 90, "save_steps": 5},
    )
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    job: Job = start_job(spec, variables=server.environment)
    policy, ran = provider.policy(spec), []
    arguments = ("--via", location, "--policy", policy, "-i", provider.identity, "--json")
    submitting = threading.Thread(
        target=lambda: ran.append(
            started_trainer("submit", data, *arguments, "-o", tmp_path / "out")
        )
    )
    submitting.start()
    job.wait_for_step("checkpoint-sealed")
    job.process.kill()
    job.process.wait(20)
    again: Job = start_job(spec, "--ciphertext-dir", job.ciphertext, variables=server.environment)
    submitting.join()
    assert ran[0].code == 0, ran[0].err
    assert again.wait() == 0
    step = again.wait_event(event="resumed")["step"]
    assert isinstance(step, int)
    assert step >= 5
    assert ran[0].err.count("upload the sealed dataset") == 1
    assert "bytes sent in place of the dataset" in ran[0].err
    store = open_store(location, server.environment)
    assert store.tag("regrant.json") is None, "gone once the job has read it"


def test_wrong_credentials_end_the_job_with_a_code(
    server: SeaweedServer, start_job: StartJob, write_spec: WriteSpec, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "job.yaml", exchange={"store": STORE})
    started = time.monotonic()
    job = start_job(spec, variables={**server.environment, "AWS_SECRET_ACCESS_KEY": "wrong-canary"})
    assert job.wait() != 0
    assert time.monotonic() - started < 60
    assert job.events[-1]["code"] == "store-refused"
    assert "canary" not in (job.out.read_text() + job.err.read_text()).lower()
