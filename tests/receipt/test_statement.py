"""The statement's form, and each single lie it could tell."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer.attestation.checks import CheckState
from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.receipt_appraisal import ExpectedResult, appraise_statement
from trainer.receipt.statement import ReceiptOutcome, StatementInputs, make_statement, parse_statement


def failing(run: StatementInputs, expected: ExpectedResult) -> list[str]:
    checks = appraise_statement(parse_statement(make_statement(run)), expected, first=2)
    assert [check.number for check in checks] == [2, 3, 4, 5, 6]
    return [check.code for check in checks if check.state is CheckState.CONTRAINDICATED]


def test_an_honest_statement_is_affirmed(run: StatementInputs, expected: ExpectedResult) -> None:
    assert failing(run, expected) == []


def test_it_says_what_was_made_from_what(run: StatementInputs) -> None:
    statement = parse_statement(make_statement(run))
    assert statement.files == dict(run.files)
    assert statement.outcome is ReceiptOutcome.SUCCEEDED
    assert statement.metrics == {"eval_loss_after": 2.5}
    names = [resource.name for resource in statement.predicate.buildDefinition.resolvedDependencies]
    assert names == ["./model/config.json", "./model/model.safetensors", "data/train.jsonl"]
    assert statement.predicate.runDetails.metadata.startedOn == "2026-09-21T14:13:20Z"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"files": {"adapter/adapter_config.json": "1" * 64}}, "receipt-files"),
        (
            {"files": {"adapter/adapter_config.json": "1" * 64, "adapter/adapter_model.safetensors": "9" * 64}},
            "receipt-files",
        ),
        ({"compose_sha256": "9" * 64}, "receipt-app"),
        ({"dataset_manifest_sha256": "9" * 64}, "receipt-dataset"),
        ({"recipients": ("age1me", "age1you", "age1operator")}, "receipt-recipients"),
        ({"recipients": ("age1operator",)}, "receipt-recipients"),
        ({"recipients": ("age1me",)}, "receipt-recipients"),
    ],
)
def test_each_lie_fails_its_own_check(
    run: StatementInputs, expected: ExpectedResult, changed: Mapping[str, object], code: str
) -> None:
    assert failing(dataclasses.replace(run, **changed), expected) == [code]  # type: ignore[arg-type]


def test_another_job_spec_is_told(run: StatementInputs, expected: ExpectedResult) -> None:
    assert failing(run, dataclasses.replace(expected, job_spec_sha256="9" * 64)) == ["receipt-job-spec"]


def test_a_spec_that_does_not_have_its_own_digest_is_told(run: StatementInputs, expected: ExpectedResult) -> None:
    document = json.loads(make_statement(run))
    document["predicate"]["buildDefinition"]["externalParameters"]["jobSpec"]["version"] = 2
    checks = appraise_statement(parse_statement(json.dumps(document).encode()), expected)
    assert [check.code for check in checks if not check.acceptable] == ["receipt-job-spec"]


def test_an_extra_file_beside_the_signed_ones_is_told(run: StatementInputs, expected: ExpectedResult) -> None:
    more = dataclasses.replace(expected, files={**run.files, "adapter/extra.py": "7" * 64})
    assert failing(run, more) == ["receipt-files"]


def test_without_a_grant_the_dataset_is_visibly_not_demanded(
    run: StatementInputs, expected: ExpectedResult
) -> None:
    loose = dataclasses.replace(expected, manifest_sha256=None, exact=False, recipients=frozenset({"age1me"}))
    checks = {check.code: check.state for check in appraise_statement(parse_statement(make_statement(run)), loose)}
    assert checks["receipt-dataset"] is CheckState.NOT_DEMANDED
    assert checks["receipt-recipients"] is CheckState.AFFIRMED
    stranger = dataclasses.replace(loose, recipients=frozenset({"age1stranger"}))
    assert failing(run, stranger) == ["receipt-recipients"]


@pytest.mark.parametrize(
    "attack",
    [
        lambda document: document.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda document: document.update(predicateType="x"),
        lambda document: document["subject"].append(document["subject"][0]),
        lambda document: document["subject"].clear(),
        lambda document: document["subject"][0].update(digest={"sha1": "x"}),
        lambda document: document["predicate"]["runDetails"]["byproducts"][0]["annotations"].update(
            outcome="maybe"
        ),
        lambda document: document["predicate"]["buildDefinition"].update(buildType="x"),
        lambda document: document.update(more=1),
    ],
)
def test_other_forms_are_refused(run: StatementInputs, attack: object) -> None:
    document = json.loads(make_statement(run))
    attack(document)  # type: ignore[operator]
    with pytest.raises(VerificationError) as caught:
        parse_statement(json.dumps(document).encode())
    assert caught.value.code is ErrorCode.RECEIPT_INVALID


def test_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        parse_statement(b"{")


def demanding(expected: ExpectedResult) -> ExpectedResult:
    return dataclasses.replace(expected, max_epsilon=3.0, max_delta=1e-5)


@pytest.mark.parametrize(
    ("privacy", "holds"),
    [
        ({"differential": {"epsilon": 3.0, "delta": 1e-5}}, True),
        ({"differential": {"epsilon": 3.1, "delta": 1e-5}}, False),
        ({"differential": {"epsilon": 3.0, "delta": 1e-4}}, False),
        ({"differential": {"epsilon": "3", "delta": 1e-5}}, False),
        ({"differential": None}, False),
        (None, False),
    ],
)
def test_a_budget_that_was_demanded_is_compared_with_the_one_spent(
    run: StatementInputs, expected: ExpectedResult, privacy: dict[str, object] | None, *, holds: bool
) -> None:
    statement = parse_statement(make_statement(dataclasses.replace(run, metrics={"privacy": privacy})))  # type: ignore[dict-item]
    checks = appraise_statement(statement, demanding(expected), first=2)
    assert statement.privacy == privacy
    assert [check.code for check in checks if check.state is CheckState.CONTRAINDICATED] == (
        [] if holds else ["receipt-privacy"]
    )
    assert checks[-1].number == 7


def test_a_failure_names_its_code_and_needs_no_budget(run: StatementInputs, expected: ExpectedResult) -> None:
    failed = dataclasses.replace(run, outcome=ReceiptOutcome.FAILED, error=ErrorCode.RELEASE_WITHHELD)
    statement = parse_statement(make_statement(failed))
    assert statement.predicate.runDetails.byproducts[0].annotations["error"] == "release-withheld"
    checks = appraise_statement(statement, demanding(expected), first=2)
    assert "receipt-privacy" not in [check.code for check in checks]
