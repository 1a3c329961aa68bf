"""A statement of a finished job, its keys, and what the provider expects of it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from trainer.receipt.expected_result import ExpectedResult, GrantTerms
from trainer.receipt.statement import ReceiptOutcome
from trainer.receipt.statement_writer import StatementInputs
from trainer.spec import JobSpec, parse_job_spec

SPEC = f"""\
version: 1
model:
  model_name_or_path: ./model
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
"""


@pytest.fixture
def spec() -> JobSpec:
    return parse_job_spec(SPEC.encode())


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(12345, ec.SECP256R1())


@pytest.fixture
def run(spec: JobSpec) -> StatementInputs:
    return StatementInputs(
        spec=spec,
        files={
            "adapter/adapter_config.json": "1" * 64,
            "adapter/adapter_model.safetensors": "2" * 64,
        },
        dataset_files={"train.jsonl": "3" * 64},
        dataset_manifest_sha256="4" * 64,
        recipients=("age1me", "age1you"),
        compose_sha256="5" * 64,
        software={"torch": "2.13.0"},
        started_at=1_790_000_000,
        finished_at=1_790_000_100,
        run="7c" * 16,
        outcome=ReceiptOutcome.SUCCEEDED,
        metrics={"eval_loss_after": 2.5},
    )


@pytest.fixture
def expected(run: StatementInputs, spec: JobSpec) -> ExpectedResult:
    return ExpectedResult(
        job_spec_sha256=spec.sha256(),
        compose_sha256=run.compose_sha256,
        files=run.files,
        failure=None,
        stanzas=2,
        attested_at=run.started_at - 60,
        quoted_at=run.finished_at,
        opened_at=run.finished_at + 60,
        terms=GrantTerms(
            recipients=run.recipients,
            manifest_sha256=run.dataset_manifest_sha256,
            dataset_files=dict(run.dataset_files),
        ),
        own_recipients=frozenset({"age1me"}),
    )
