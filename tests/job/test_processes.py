"""What a job spec demands of its walls is looked at before anything else happens."""

from __future__ import annotations

import pytest

from trainer.errors import ErrorCode, JobError, UsageError
from trainer.job.processes import require_sandbox
from trainer.sandbox.properties import SandboxProperty
from trainer.spec import parse_job_spec

DEMANDED = (SandboxProperty.WORKER_NO_NETWORK, SandboxProperty.SEPARATE_USERS)


def test_walls_that_stand() -> None:
    require_sandbox(
        DEMANDED,
        {
            SandboxProperty.WORKER_NO_NETWORK: True,
            SandboxProperty.SEPARATE_USERS: True,
            SandboxProperty.SWAP_OFF: False,
        },
    )
    require_sandbox((), {})


@pytest.mark.parametrize(
    ("walls", "missing"),
    [
        ({SandboxProperty.WORKER_NO_NETWORK: True, SandboxProperty.SEPARATE_USERS: False}, "separate_users"),
        ({SandboxProperty.SEPARATE_USERS: True}, "worker_no_network"),
        ({}, "worker_no_network, separate_users"),
    ],
)
def test_a_wall_that_is_missing_ends_the_job(walls: dict[SandboxProperty, bool], missing: str) -> None:
    with pytest.raises(JobError) as caught:
        require_sandbox(DEMANDED, walls)
    assert caught.value.code is ErrorCode.SANDBOX_INCOMPLETE
    assert caught.value.found == f"all but {missing}"


def test_a_wall_that_nobody_knows_is_a_usage_error() -> None:
    digests = "{config.json: " + "0" * 64 + ", model.safetensors: " + "0" * 64 + "}"
    text = (
        f"version: 1\nmodel: {{model_name_or_path: /m, model_file_sha256: {digests}}}\ntee: {{sandbox: [moat]}}\n"
    )
    with pytest.raises(UsageError) as caught:
        parse_job_spec(text.encode())
    assert caught.value.code is ErrorCode.SPEC_INVALID
