"""The privacy statement: ε of the weights, signed, and nothing else that is exact."""

from __future__ import annotations

import json

import pytest

from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.attested_envelope import parse_attested_envelope
from trainer.receipt.privacy_statement import (
    PrivacyPredicate,
    check_privacy_statement,
    make_privacy_statement,
)
from trainer.receipt.statement_writer import StatementInputs, make_statement

JOB = "ab" * 32
FILES = {
    "adapter/adapter_config.json": "1" * 64,
    "adapter/adapter_model.safetensors": "2" * 64,
    "merged/model.safetensors": "3" * 64,
    "report/summary.json": "4" * 64,
}
PREDICATE = PrivacyPredicate(
    jobSpecSha256=JOB, run="7c" * 16, runs=1, epsilon=3.0, delta=1e-5, accountant="prv"
)


def test_it_says_how_private_which_weights_are_and_no_more() -> None:
    """Sampling rate, noise, steps, losses, counts and the dataset's digest would say which rows there were."""
    payload = make_privacy_statement(PREDICATE, FILES)
    statement = check_privacy_statement(payload, job_spec_sha256=JOB, files=FILES)
    assert statement.files == {name: FILES[name] for name in FILES if name.endswith(".safetensors")}
    assert set(json.loads(payload)["predicate"]) == {
        "jobSpecSha256", "run", "runs", "unit", "neighbours", "epsilon", "delta", "accountant",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("job", "files"),
    [
        ("cd" * 32, FILES),
        (JOB, {**FILES, "adapter/adapter_model.safetensors": "9" * 64}),
        (JOB, {**FILES, "merged/model-00002-of-00002.safetensors": "9" * 64}),
        (JOB, {"adapter/adapter_model.safetensors": "2" * 64}),
    ],
)
def test_it_is_not_taken_for_another_job_or_other_weights(job: str, files: dict[str, str]) -> None:
    with pytest.raises(VerificationError) as error:
        check_privacy_statement(
            make_privacy_statement(PREDICATE, FILES), job_spec_sha256=job, files=files
        )
    assert error.value.code is ErrorCode.RECEIPT_MISMATCH


def test_a_receipt_is_no_privacy_statement(run: StatementInputs) -> None:
    """One key signs both."""
    for payload in (make_statement(run), b"{}", b'{"_type":1,"_type":2}'):
        with pytest.raises(VerificationError) as error:
            check_privacy_statement(payload, job_spec_sha256=JOB, files=FILES)
        assert error.value.code is ErrorCode.RECEIPT_INVALID
    with pytest.raises(VerificationError):
        parse_attested_envelope(b'{"envelope": {}, "evidence": {}}', what="privacy statement")
