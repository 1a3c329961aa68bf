"""The grant's demand for differentially private weights, before training and after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue

from tests.job.test_outcome import SHM, SPEC
from trainer.errors import ErrorCode, JobError, UsageError
from trainer.job.end_record import PrivacySpent
from trainer.job.grant_demands import require_privacy_met, require_privacy_promised, spent_by
from trainer.job.outcome import _gather_tree
from trainer.job.result_statements import JobOutcome
from trainer.job.workspace import filesystem_type, open_workspace
from trainer.provider import make_privacy_demand
from trainer.sealing.age import generate_identity
from trainer.sealing.bundle import Grant
from trainer.spec import JobSpec, parse_job_spec

BASE = f"""\
version: 1
model: {{model_name_or_path: ./m, model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}}}
data: {{split_turns: never}}
train: {{engine: transformers}}
"""


def spec(privacy: str) -> JobSpec:
    return parse_job_spec(f"{BASE}privacy: {privacy}\n".encode())


def grant(*, demands: bool = True) -> Grant:
    return Grant(
        version=1, job_spec_sha256="0" * 64, recipients=(str(generate_identity(hybrid=False).recipient()),),
        expires_at=1, secret="0" * 64, require=make_privacy_demand(3.0, 1e-5) if demands else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("privacy", "holds"),
    [
        ("{target_epsilon: 3.0, target_delta: 1e-5}", True),
        ("{noise_multiplier: 1.0, target_delta: 1e-6}", True),
        ("{target_epsilon: 3.1, target_delta: 1e-5}", False),
        ("{target_epsilon: 3.0, target_delta: 2e-5}", False),
        ("{}", False),
    ],
)
def test_a_spec_that_promises_less_is_refused_before_training(privacy: str, holds: bool) -> None:
    require_privacy_promised(grant(demands=False), spec(privacy))
    if holds:
        require_privacy_promised(grant(), spec(privacy))
        return
    with pytest.raises(JobError) as error:
        require_privacy_promised(grant(), spec(privacy))
    assert error.value.code is ErrorCode.PRIVACY_NOT_MET


@pytest.mark.parametrize(
    "privacy",
    [None, {}, {"differential": None}, {"differential": {"epsilon": 3.01, "delta": 1e-5}},
     {"differential": {"epsilon": 2.0, "delta": 2e-5}}, {"differential": {"epsilon": "2", "delta": 1e-5}}],
)  # fmt: skip
def test_what_was_not_kept_or_not_said_is_refused_after_training(privacy: JsonValue) -> None:
    require_privacy_met(grant(demands=False), spent_by({"privacy": privacy}))
    require_privacy_met(
        grant(), spent_by({"privacy": {"differential": {"epsilon": 3.0, "delta": 1e-5}}})
    )
    with pytest.raises(JobError) as error:
        require_privacy_met(grant(), spent_by({"privacy": privacy}))
    assert error.value.code is ErrorCode.PRIVACY_NOT_MET


def test_results_of_several_runs_share_the_budget_of_a_grant() -> None:
    """Each start trains with noise of its own: two results that claim ε = 2 each are one of ε = 4 together."""
    summary: dict[str, JsonValue] = {"privacy": {"differential": {"epsilon": 2.0, "delta": 4e-6}}}
    first = spent_by(summary)
    require_privacy_met(grant(), first)
    second = spent_by(summary, first)
    assert second is not None
    assert second == PrivacySpent(runs=2, epsilon=4.0, delta=8e-6)
    with pytest.raises(JobError, match="2 runs") as error:
        require_privacy_met(grant(), second)
    assert error.value.code is ErrorCode.PRIVACY_NOT_MET
    small = spec("{target_epsilon: 0.9, target_delta: 1e-6}")
    require_privacy_promised(grant(), small, first)
    with pytest.raises(JobError, match="after 2 runs"):
        require_privacy_promised(grant(), small, second)


def test_a_demand_is_in_the_grants_bytes_and_only_then() -> None:
    assert b'"require":{"privacy":{"max_delta":0.00001,"max_epsilon":3}}' in grant().canonical()
    assert b"require" not in grant(demands=False).canonical()


def test_half_a_demand_is_refused() -> None:
    assert make_privacy_demand(None, None) is None
    for epsilon, delta in ((1.0, None), (None, 0.1), (-1.0, 0.1), (1.0, 1.0)):
        with pytest.raises(UsageError):
            make_privacy_demand(epsilon, delta)


@pytest.mark.skipif(filesystem_type(SHM) != "tmpfs", reason="no tmpfs at /dev/shm")
def test_withheld_weights_stay_behind_and_their_report_goes_along() -> None:
    with open_workspace(SHM) as workspace:
        for name in (
            "adapter/adapter_model.safetensors",
            "merged/model.safetensors",
            "report/summary.json",
        ):
            file: Path = workspace.output / name
            file.parent.mkdir(parents=True)
            file.write_bytes(b"{}")
        tree = _gather_tree(
            JobOutcome(1, 2, {}, JobError(ErrorCode.RELEASE_WITHHELD, "no")), workspace, SPEC
        )
        names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert names >= {"report/summary.json", "report/failure.json"}
    assert not any("safetensors" in name for name in names)
