"""The provider needs no copy of job.yaml where the measured compose text has it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.deployment import SHIPPED_COMPOSE, render_compose
from trainer.errors import VerificationError
from trainer.provider.attested_spec import attested_job_spec
from trainer.simulator.compose_files import JOB
from trainer.spec import parse_job_spec

SPEC = parse_job_spec(JOB.encode())


def record(compose: str, digest: str = SPEC.sha256()) -> Any:
    app = json.dumps({"name": "x", "docker_compose_file": compose})
    return SimpleNamespace(
        result=SimpleNamespace(job_spec_sha256=digest), evidence=SimpleNamespace(app_compose=app)
    )


def test_the_spec_of_the_shipped_compose_file_is_found() -> None:
    assert attested_job_spec(record(render_compose(SHIPPED_COMPOSE, JOB)), None) == SPEC


@pytest.mark.parametrize(
    "compose",
    [
        "services: {}",
        "services: []",
        "a: [",
        "",
        "services:\n  x:\n    environment:\n      TRAINER_JOB: ${JOB}\n",
    ],
)
def test_a_text_without_one_gives_none(compose: str) -> None:
    assert attested_job_spec(record(compose), None) is None


def test_a_spec_that_the_job_does_not_claim_is_not_taken(tmp_path: Path) -> None:
    other = record(render_compose(SHIPPED_COMPOSE, JOB), "0" * 64)
    assert attested_job_spec(other, None) is None
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    assert attested_job_spec(record("services: {}"), job) == SPEC
    with pytest.raises(VerificationError, match="not the spec of the appraised job"):
        attested_job_spec(other, job)
