"""What the provider's own commands refuse before anything is sent: one job waits, and gets no dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import starting_jobs
from tests.end_to_end.test_bad_input import assert_error

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Agent, Job, Provider, Trainer, WriteSpec
    from tests.fork_server import ForkServer


@pytest.fixture(scope="module")
def job(
    write_spec: WriteSpec,
    agent: Agent,
    stack_server: ForkServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Job]:
    """A job that waits for a dataset; all tests talk to the same one."""
    folder = tmp_path_factory.mktemp("waiting")
    with starting_jobs(folder, agent, stack_server) as start_job:
        yield start_job(write_spec(folder / "job.yaml"))


def test_a_development_root_that_the_policy_does_not_name(
    job: Job, provider: Provider, trainer: Trainer, data: Path, tmp_path: Path
) -> None:
    spec = job.spec
    policy, record = provider.policy(spec, development=False), tmp_path / "attestation.json"
    ran = trainer("verify", job.url, "--policy", policy, "-o", record, "--json")
    assert ran.code == 4
    checks = json.loads(ran.out.splitlines()[0])["checks"]
    assert checks["root-of-trust"] == "contraindicated"
    sealed = tmp_path / "dataset.age"
    assert_error(provider.seal(data, record, sealed), 4, "verification-failed")
    result = tmp_path / "result"
    submitted = trainer(*provider.submission(job, data, result))
    assert_error(submitted, 4, "verification-failed")
    assert not sealed.exists()
    assert not result.exists()
    assert not any(event["event"] == "dataset-received" for event in job.events)


def test_an_edited_attestation_result_does_not_open_the_way(
    job: Job, provider: Provider, trainer: Trainer, data: Path, tmp_path: Path
) -> None:
    spec = job.spec
    record = tmp_path / "attestation.json"
    trainer("verify", job.url, "--policy", provider.policy(spec, development=False), "-o", record)
    edited = json.loads(record.read_bytes())
    edited["result"]["status"] = "pass"
    record.write_text(json.dumps(edited))
    ran = provider.seal(data, record, tmp_path / "x.age")
    assert ran.code == 4
    assert not (tmp_path / "x.age").exists()


def test_a_malformed_row_is_found_before_anything_is_sent(
    job: Job, provider: Provider, trainer: Trainer, rows: str, tmp_path: Path
) -> None:
    spec = job.spec
    data = tmp_path / "train.jsonl"
    data.write_text(
        rows
        + '{"messages": [{"role": "user", "content": "canary-in-a-bad-row"}, {"role": "assistant"}]}\n'
    )
    provider.keygen()
    ran = trainer(
        "submit", data, "--job-url", job.url, "--policy", provider.policy(spec), "-i", provider.identity,
        "-o", tmp_path / "result",
    )  # fmt: skip
    assert_error(ran, 7, "dataset-row-invalid", "row 40", "messages[1]")
    assert "canary" not in ran.err + ran.out
    assert not any(event["event"] == "dataset-received" for event in job.events)
    assert_error(trainer("validate", data, "--job", spec), 7, "dataset-row-invalid", "row 40")
