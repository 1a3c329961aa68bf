"""Privacy of the weights, through the whole path: demanded, kept, and told by the receipt."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Provider, StartJob, Trainer, WriteSpec

DEMAND = ("--max-epsilon", "3", "--max-delta", "1e-5")


def test_a_demand_is_kept_and_the_receipt_says_so(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("opacus", reason="the extra `privacy` is not installed")
    spec = write_spec(
        tmp_path / "job.yaml",
        privacy={"target_epsilon": 3.0, "target_delta": 1e-5},
        data={"split_turns": "never"},
        train={"engine": "transformers", "max_steps": 2},
    )
    job, policy = start_job(spec), provider.policy(spec)
    provider.keygen()
    common = ("--policy", policy, "-i", provider.identity, "-o", tmp_path / "result", "--json")
    ran = trainer("submit", data, "--job-url", job.url, *common, *DEMAND)
    assert ran.code == 0, ran.err
    assert ran.json["checks"]["receipt-privacy"] == "affirmed"
    assert ran.json["privacy"] == "ε = 3 at δ = 1e-05 for each row, over 1 run"
    result = tmp_path / "result"
    assert (result / "adapter" / "adapter_model.safetensors").is_file()
    assert ran.json["checks"]["privacy-statement"] == "affirmed"
    assert job.wait() == 0
    # What is handed on: the adapter, its card and the statement. None of it leads to the rows.
    receipt = json.loads(
        base64.b64decode(json.loads((result / "receipt.json").read_bytes())["payload"])
    )
    dataset = receipt["predicate"]["buildDefinition"]["internalParameters"]["datasetManifestSha256"]
    card = (result / "adapter" / "README.md").read_text()
    envelope = json.loads((result / "privacy.json").read_bytes())["envelope"]
    statement = base64.b64decode(envelope["payload"]).decode()
    for exact in (
        hashlib.sha256(data.read_bytes()).hexdigest(),
        dataset,
        '"rows"',
        "sample_rate",
        "losses",
    ):
        assert exact not in card + statement
    assert json.loads(statement)["predicate"]["epsilon"] == 3.0


def test_a_job_that_does_not_promise_it_gives_no_weights(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    spec = write_spec(tmp_path / "job.yaml")
    job, policy = start_job(spec), provider.policy(spec)
    provider.keygen()
    ran = trainer(
        "submit", data, "--job-url", job.url, "--policy", policy, "-i", provider.identity,
        "-o", tmp_path / "result", *DEMAND,
    )  # fmt: skip
    assert ran.code == 6
    assert "error[privacy-not-met]" in ran.err
    assert not (tmp_path / "result" / "adapter").exists()
    assert not any(event["event"] == "progress" for event in job.events), "it did not even train"


def test_withheld_weights_do_not_leave_and_their_report_does(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    spec = write_spec(
        tmp_path / "job.yaml",
        privacy={"audit": True, "canaries": 1, "max_exposure": 1e-9},
        train={"max_steps": 40, "learning_rate": 0.02},
    )
    job = start_job(spec)
    provider.policy(spec)
    provider.keygen()
    result = tmp_path / "result"
    ran = trainer(*provider.submission(job, data, result))
    assert ran.code == 6
    assert "error[release-withheld]" in ran.err
    result = tmp_path / "result.failure-1"
    assert "withheld" in (result / "report" / "report.html").read_text()
    assert (
        json.loads((result / "report" / "failure.json").read_bytes())["code"] == "release-withheld"
    )
    assert list(result.rglob("*.safetensors")) == []
