"""Whose measurements of the sandbox count, and what a job spec demands of them."""

from __future__ import annotations

import pytest

from trainer.errors import ErrorCode, JobError, UsageError
from trainer.job.processes import _properties_of, require_sandbox
from trainer.sandbox.plan import Role
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
        (
            {SandboxProperty.WORKER_NO_NETWORK: True, SandboxProperty.SEPARATE_USERS: False},
            "separate_users",
        ),
        ({SandboxProperty.SEPARATE_USERS: True}, "worker_no_network"),
        ({}, "worker_no_network, separate_users"),
    ],
)
def test_a_wall_that_is_missing_ends_the_job(
    walls: dict[SandboxProperty, bool], missing: str
) -> None:
    with pytest.raises(JobError) as caught:
        require_sandbox(DEMANDED, walls)
    assert caught.value.code is ErrorCode.SANDBOX_INCOMPLETE
    assert caught.value.found == f"all but {missing}"


def test_a_wall_that_nobody_knows_is_a_usage_error() -> None:
    digests = "{config.json: " + "0" * 64 + ", model.safetensors: " + "0" * 64 + "}"
    model = f"{{model_name_or_path: /m, model_file_sha256: {digests}}}"
    text = f"version: 1\nmodel: {model}\ntee: {{sandbox: [moat]}}\n"
    with pytest.raises(UsageError) as caught:
        parse_job_spec(text.encode())
    assert caught.value.code is ErrorCode.SPEC_INVALID


@pytest.mark.parametrize("role", [Role.FRONT, Role.WORKER])
def test_a_child_can_only_report_about_itself(role: Role) -> None:
    """A compromised child claims everything: for the supervisor, the other child and the machine as well."""
    claimed = _properties_of(role, dict.fromkeys(SandboxProperty, True))
    assert claimed
    assert {name.partition("_")[0] for name in claimed} == {role.value}


def test_every_property_belongs_to_one_process_or_to_the_supervisor_to_measure() -> None:
    by_child = {
        name
        for role in (Role.FRONT, Role.WORKER)
        for name in _properties_of(role, dict.fromkeys(SandboxProperty, True))
    }
    rest = {
        name
        for name in SandboxProperty
        if name not in by_child and not name.startswith("supervisor_")
    }
    assert rest == {
        SandboxProperty.CORE_DUMPS_OFF,
        SandboxProperty.WORKSPACE_IN_MEMORY,
        SandboxProperty.SWAP_OFF,
        SandboxProperty.SEPARATE_USERS,
    }
