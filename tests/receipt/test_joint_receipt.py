"""What a provider of a joint job demands of the receipt: its own dataset, and one of each other provider."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.attestation.checks import CheckState
from trainer.receipt.expected_result import ExpectedResult, PoolPlace
from trainer.receipt.receipt_appraisal import appraise_statement
from trainer.receipt.statement import ReceiptOutcome, parse_statement
from trainer.receipt.statement_writer import StatementInputs, make_statement
from trainer.spec.pool_names import pool_sha256

OWN, OTHER = "4" * 64, "6" * 64
POOL = {"provider-01": OTHER, "provider-02": OWN}


@pytest.fixture
def joint(run: StatementInputs) -> StatementInputs:
    return replace(run, dataset_files=POOL, dataset_manifest_sha256=pool_sha256([OTHER, OWN]))


@pytest.fixture
def second(expected: ExpectedResult) -> ExpectedResult:
    """What the second of two providers expects."""
    place = PoolPlace(number=2, providers=2, own_recipients=("age1own",))
    assert expected.terms is not None
    return replace(expected, terms=expected.terms.model_copy(update={"pool": place, "rows": 7}))


def failed(run: StatementInputs, expected: ExpectedResult) -> list[str]:
    checks = appraise_statement(parse_statement(make_statement(run)), expected)
    return [check.code for check in checks if check.state is CheckState.CONTRAINDICATED]


def test_an_honest_receipt_passes_and_counts_no_rows(
    joint: StatementInputs, second: ExpectedResult
) -> None:
    assert failed(joint, second) == []


@pytest.mark.parametrize(
    "datasets",
    [
        {"provider-01": OTHER},
        {"provider-01": OWN, "provider-02": OTHER},
        {**POOL, "provider-03": "7" * 64},
        {**POOL, "train.jsonl": "7" * 64},
        {"provider-02": OWN, "provider-03": OTHER},
    ],
    ids=[
        "without ours",
        "in another order",
        "one more provider",
        "one more file",
        "another provider",
    ],
)
def test_a_receipt_about_another_pool_is_refused(
    datasets: dict[str, str], joint: StatementInputs, second: ExpectedResult
) -> None:
    made = replace(
        joint, dataset_files=datasets, dataset_manifest_sha256=pool_sha256(list(datasets.values()))
    )
    assert failed(made, second) == ["receipt-dataset"]


def test_the_digest_of_the_pool_is_that_of_its_datasets(
    joint: StatementInputs, second: ExpectedResult
) -> None:
    assert failed(replace(joint, dataset_manifest_sha256="8" * 64), second) == ["receipt-dataset"]


def test_only_a_report_on_a_failure_may_be_for_one_provider_alone(
    joint: StatementInputs, second: ExpectedResult
) -> None:
    alone = replace(joint, recipients=("age1own",))
    assert "receipt-recipients" in failed(alone, replace(second, stanzas=1))
    report = replace(alone, outcome=ReceiptOutcome.FAILED)
    assert "receipt-recipients" not in failed(report, replace(second, stanzas=1))
    assert "receipt-recipients" in failed(
        replace(report, recipients=("age1else",)), replace(second, stanzas=1)
    )
