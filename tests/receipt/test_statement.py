"""The statement's form, and each single lie it could tell."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from tests.receipt.conftest import SPEC
from trainer.attestation.checks import CheckState
from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.expected_result import ExpectedResult
from trainer.receipt.receipt_appraisal import appraise_statement
from trainer.receipt.statement import ReceiptOutcome, Statement, parse_statement
from trainer.receipt.statement_writer import StatementInputs, make_statement
from trainer.spec import parse_job_spec

ADAPTER = {"adapter/adapter_config.json": "1" * 64, "adapter/adapter_model.safetensors": "2" * 64}


def failing(run: StatementInputs, expected: ExpectedResult) -> list[str]:
    checks = appraise_statement(parse_statement(make_statement(run)), expected, first=2)
    assert [check.number for check in checks] == list(range(2, 10))
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
        ({"files": {**ADAPTER, "adapter/more.json": "1" * 64}}, "receipt-files"),
        (
            {
                "files": {
                    "adapter/adapter_config.json": "1" * 64,
                    "adapter/adapter_model.safetensors": "9" * 64,
                }
            },
            "receipt-files",
        ),
        ({"compose_sha256": "9" * 64}, "receipt-app"),
        ({"dataset_manifest_sha256": "9" * 64}, "receipt-dataset"),
        ({"recipients": ("age1me", "age1you", "age1operator")}, "receipt-recipients"),
        ({"recipients": ("age1operator",)}, "receipt-recipients"),
        ({"recipients": ("age1me",)}, "receipt-recipients"),
        ({"recipients": ("age1me", "age1you", "age1you")}, "receipt-recipients"),
        ({"dataset_files": {}}, "receipt-dataset"),
        ({"dataset_files": {"train.jsonl": "9" * 64}}, "receipt-dataset"),
        ({"dataset_files": {"other.jsonl": "3" * 64}}, "receipt-dataset"),
        ({"dataset_files": {"train.jsonl": "3" * 64, "more.jsonl": "3" * 64}}, "receipt-dataset"),
        ({"outcome": ReceiptOutcome.FAILED}, "receipt-outcome"),
        ({"outcome": ReceiptOutcome.FAILED, "error": ErrorCode.INTERNAL}, "receipt-outcome"),
        ({"error": ErrorCode.INTERNAL}, "receipt-outcome"),
        ({"started_at": 1_790_000_101}, "receipt-times"),
        ({"started_at": 1_790_000_000 - 361}, "receipt-times"),
        ({"finished_at": 1_790_000_101}, "receipt-times"),
        ({"finished_at": 1_790_000_000 + 25 * 3600}, "receipt-times"),
        ({"finished_at": 4_070_908_800}, "receipt-times"),  # the year 2099
    ],
)
def test_each_lie_fails_its_own_check(
    run: StatementInputs, expected: ExpectedResult, changed: Mapping[str, object], code: str
) -> None:
    assert failing(dataclasses.replace(run, **changed), expected) == [code]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"stanzas": 3}, "receipt-recipients"),
        ({"stanzas": 1}, "receipt-recipients"),
        (
            {"failure": "internal"},
            None,
        ),  # a report that the statement does not list is another check's
        ({"quoted_at": 1_790_000_099}, "receipt-times"),
        ({"opened_at": 1_790_000_100 - 301}, "receipt-times"),
        ({"attested_at": 1_790_000_000 + 301}, "receipt-times"),
    ],
)
def test_what_was_found_has_to_fit(
    run: StatementInputs, expected: ExpectedResult, changed: Mapping[str, object], code: str | None
) -> None:
    assert failing(run, dataclasses.replace(expected, **changed)) == ([code] if code else [])  # type: ignore[arg-type]


@pytest.mark.parametrize("quoted_at", [1_790_000_000 + 25 * 3600, 4_070_908_800])
def test_a_future_that_quote_and_statement_agree_on_is_refused(
    run: StatementInputs, expected: ExpectedResult, quoted_at: int
) -> None:
    later = dataclasses.replace(run, finished_at=quoted_at)
    assert failing(later, dataclasses.replace(expected, quoted_at=quoted_at)) == ["receipt-times"]


@pytest.mark.parametrize(
    "files", [{}, {"adapter/adapter_config.json": "1" * 64}], ids=["none", "no weights"]
)
def test_a_success_without_its_weights_is_none(
    run: StatementInputs, expected: ExpectedResult, files: dict[str, str]
) -> None:
    files = {"report/summary.json": "7" * 64, **files}
    assert failing(
        dataclasses.replace(run, files=files), dataclasses.replace(expected, files=files)
    ) == ["receipt-outcome"]


def test_a_failure_has_a_report_with_its_code(
    run: StatementInputs, expected: ExpectedResult
) -> None:
    files = {"report/failure.json": "7" * 64}
    failed = dataclasses.replace(
        run, outcome=ReceiptOutcome.FAILED, error=ErrorCode.INTERNAL, files=files
    )
    found = dataclasses.replace(expected, files=files, failure=ErrorCode.INTERNAL.value)
    assert failing(failed, found) == []
    assert failing(failed, dataclasses.replace(found, failure="worker-died")) == ["receipt-outcome"]
    assert failing(failed, dataclasses.replace(found, failure=None)) == ["receipt-outcome"]
    both = {**files, **ADAPTER}
    succeeded = dataclasses.replace(run, files=both)
    assert failing(succeeded, dataclasses.replace(found, files=both)) == ["receipt-outcome"]


def edited_dependencies(run: StatementInputs, edit: Callable[[list[Any]], object]) -> Statement:
    document = json.loads(make_statement(run))
    edit(document["predicate"]["buildDefinition"]["resolvedDependencies"])
    return parse_statement(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("edit", "codes"),
    [
        (lambda listed: listed.clear(), ["receipt-base-model", "receipt-dataset"]),
        (lambda listed: listed.pop(0), ["receipt-base-model"]),
        (
            lambda listed: listed[0]["digest"].update(sha256="9" * 64),
            ["receipt-base-model", "receipt-dataset"],
        ),
        (
            lambda listed: listed[0].update(name="./model/other.json"),
            ["receipt-base-model", "receipt-dataset"],
        ),
        (lambda listed: listed.append(listed[0]), ["receipt-dataset"]),
        (lambda listed: listed.append(listed[-1]), ["receipt-dataset"]),
        (
            lambda listed: listed.append({**listed[0], "name": "./model/more.json"}),
            ["receipt-dataset"],
        ),
        (lambda listed: listed.pop(), ["receipt-dataset"]),
    ],
)
def test_what_it_was_made_from_is_compared_file_by_file(
    run: StatementInputs,
    expected: ExpectedResult,
    edit: Callable[[list[Any]], object],
    codes: list[str],
) -> None:
    checks = appraise_statement(edited_dependencies(run, edit), expected)
    assert [check.code for check in checks if not check.acceptable] == codes


def test_a_job_spec_that_pins_no_base_model_makes_nothing(
    run: StatementInputs, expected: ExpectedResult
) -> None:
    document = json.loads(make_statement(run))
    document["predicate"]["buildDefinition"]["externalParameters"]["jobSpec"]["model"] = None
    checks = appraise_statement(parse_statement(json.dumps(document).encode()), expected)
    assert {"receipt-job-spec", "receipt-base-model"} <= {
        check.code for check in checks if not check.acceptable
    }


def test_the_byproduct_is_a_resource_descriptor(run: StatementInputs) -> None:
    """In-toto demands one of uri, digest and content at least."""
    (byproduct,) = json.loads(make_statement(run))["predicate"]["runDetails"]["byproducts"]
    assert byproduct.keys() == {"name", "mediaType", "content"}
    assert json.loads(base64.b64decode(byproduct["content"])) == {
        "outcome": "succeeded",
        "metrics": {"eval_loss_after": 2.5},
    }


def test_another_job_spec_is_told(run: StatementInputs, expected: ExpectedResult) -> None:
    assert failing(run, dataclasses.replace(expected, job_spec_sha256="9" * 64)) == [
        "receipt-job-spec"
    ]


def test_a_spec_that_does_not_have_its_own_digest_is_told(
    run: StatementInputs, expected: ExpectedResult
) -> None:
    document = json.loads(make_statement(run))
    document["predicate"]["buildDefinition"]["externalParameters"]["jobSpec"]["version"] = 2
    checks = appraise_statement(parse_statement(json.dumps(document).encode()), expected)
    assert [check.code for check in checks if not check.acceptable] == ["receipt-job-spec"]


def test_an_extra_file_beside_the_signed_ones_is_told(
    run: StatementInputs, expected: ExpectedResult
) -> None:
    more = dataclasses.replace(expected, files={**run.files, "adapter/extra.py": "7" * 64})
    assert failing(run, more) == ["receipt-files"]


def test_without_a_grant_the_dataset_is_visibly_not_demanded(
    run: StatementInputs, expected: ExpectedResult
) -> None:
    loose = dataclasses.replace(expected, terms=None)
    checks = {
        check.code: check.state
        for check in appraise_statement(parse_statement(make_statement(run)), loose)
    }
    assert checks["receipt-dataset"] is CheckState.NOT_DEMANDED
    assert checks["receipt-recipients"] is CheckState.AFFIRMED
    stranger = dataclasses.replace(loose, own_recipients=frozenset({"age1stranger"}))
    assert failing(run, stranger) == ["receipt-recipients"]


def summarized(document: dict[str, Any], summary: bytes) -> None:
    """Puts another summary into the byproduct."""
    document["predicate"]["runDetails"]["byproducts"][0]["content"] = base64.b64encode(
        summary
    ).decode()


@pytest.mark.parametrize(
    "attack",
    [
        lambda document: document.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda document: document.update(predicateType="x"),
        lambda document: document["subject"].append(document["subject"][0]),
        lambda document: document["subject"].clear(),
        lambda document: document["subject"][0].update(digest={"sha1": "x"}),
        lambda document: summarized(document, b'{"metrics":{},"outcome":"maybe"}'),
        lambda document: summarized(document, b'{"metrics":{}}'),
        lambda document: summarized(document, b'{"metrics":{},"more":1,"outcome":"failed"}'),
        lambda document: summarized(
            document, b'{"outcome":"succeeded","metrics":{}}'
        ),  # keys not sorted
        lambda document: summarized(document, b'{"metrics":{},"outcome":"succeeded"} '),
        lambda document: summarized(
            document, b'{"metrics":{},"outcome":"failed","outcome":"succeeded"}'
        ),
        lambda document: summarized(document, b"\xff"),
        lambda document: document["predicate"]["runDetails"]["byproducts"][0].update(content="e30"),
        lambda document: document["predicate"]["runDetails"]["byproducts"][0].pop("content"),
        lambda document: document["predicate"]["runDetails"]["byproducts"][0].update(
            mediaType="text/html"
        ),
        lambda document: document["predicate"]["runDetails"]["byproducts"].clear(),
        lambda document: document["predicate"]["runDetails"]["metadata"].update(
            finishedOn="2026-02-30T00:00:00Z"
        ),
        lambda document: document["predicate"]["runDetails"]["metadata"].update(
            finishedOn="2026-02-20 00:00:00Z"
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
    assert expected.terms is not None
    return dataclasses.replace(
        expected, terms=expected.terms.model_copy(update={"max_epsilon": 3.0, "max_delta": 1e-5})
    )


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
    run: StatementInputs,
    expected: ExpectedResult,
    privacy: dict[str, object] | None,
    *,
    holds: bool,
) -> None:
    run = dataclasses.replace(run, metrics={"privacy": privacy})  # type: ignore[dict-item]
    statement = parse_statement(make_statement(run))
    checks = appraise_statement(statement, demanding(expected), first=2)
    assert statement.privacy == privacy
    assert [check.code for check in checks if check.state is CheckState.CONTRAINDICATED] == (
        [] if holds else ["receipt-privacy"]
    )
    assert checks[-1].number == 10


def test_a_failure_names_its_code_and_needs_no_budget(
    run: StatementInputs, expected: ExpectedResult
) -> None:
    failed = dataclasses.replace(
        run, outcome=ReceiptOutcome.FAILED, error=ErrorCode.RELEASE_WITHHELD
    )
    statement = parse_statement(make_statement(failed))
    assert statement.summary.error is ErrorCode.RELEASE_WITHHELD
    checks = appraise_statement(statement, demanding(expected), first=2)
    assert "receipt-privacy" not in [check.code for check in checks]


@pytest.mark.parametrize("asked", ["noise_multiplier: 1.1", "target_epsilon: 3.0"])
@pytest.mark.parametrize(
    ("privacy", "holds"),
    [
        ({"differential": {"epsilon": 3.0, "delta": 1e-5}}, True),
        ({"differential": {"epsilon": 3.0, "delta": None}}, False),
        ({"differential": {"epsilon": True, "delta": 1e-5}}, False),
        ({"differential": None}, False),
        (None, False),
    ],
)
def test_a_job_that_was_asked_for_privacy_states_it_though_no_grant_demands_it(
    run: StatementInputs,
    expected: ExpectedResult,
    asked: str,
    privacy: dict[str, object] | None,
    *,
    holds: bool,
) -> None:
    needed = "train: {engine: transformers}\ndata: {split_turns: never}\n"
    spec = parse_job_spec(f"{SPEC}privacy: {{{asked}, target_delta: 1e-5}}\n{needed}".encode())
    private_run = dataclasses.replace(run, spec=spec, metrics={"privacy": privacy})  # type: ignore[dict-item]
    statement = parse_statement(make_statement(private_run))
    checks = appraise_statement(
        statement, dataclasses.replace(expected, job_spec_sha256=spec.sha256())
    )
    assert [check.code for check in checks if check.state is CheckState.CONTRAINDICATED] == (
        [] if holds else ["receipt-privacy"]
    )


@pytest.mark.parametrize(
    ("metrics", "wrong"),
    [
        ({"rows": {"train": 8, "eval": 1, "dropped": 1, "truncated": 3}}, []),
        ({"rows": {"train": 8, "eval": 1, "dropped": 0}}, ["receipt-rows"]),
        ({"rows": {"train": 8, "eval": 1}}, ["receipt-rows"]),
        ({"rows": 10}, ["receipt-rows"]),
        ({}, ["receipt-rows"]),
    ],
)
def test_a_success_counts_every_row_that_was_sealed(
    run: StatementInputs, expected: ExpectedResult, metrics: dict[str, object], wrong: list[str]
) -> None:
    assert expected.terms is not None
    known = dataclasses.replace(expected, terms=expected.terms.model_copy(update={"rows": 10}))
    statement = parse_statement(make_statement(dataclasses.replace(run, metrics=metrics)))  # type: ignore[arg-type]
    checks = appraise_statement(statement, known)
    assert [check.code for check in checks if check.state is CheckState.CONTRAINDICATED] == wrong


@pytest.mark.parametrize(
    ("data", "wrong"),
    [("data: {mix: {chat.jsonl: 0.5}}", []), ("data: {}", ["receipt-rows"])],
    ids=str,
)
def test_rows_that_are_not_drawn_are_counted_where_the_job_spec_mixes_data(
    run: StatementInputs, expected: ExpectedResult, data: str, wrong: list[str]
) -> None:
    assert expected.terms is not None
    spec = parse_job_spec(f"{SPEC}{data}\n".encode())
    known = dataclasses.replace(
        expected,
        terms=expected.terms.model_copy(update={"rows": 10}),
        job_spec_sha256=spec.sha256(),
    )
    counts: dict[str, JsonValue] = {
        "train": 4,
        "eval": 1,
        "dropped": 1,
        "truncated": 0,
        "undrawn": 4,
    }
    statement = parse_statement(
        make_statement(dataclasses.replace(run, spec=spec, metrics={"rows": counts}))
    )
    checks = appraise_statement(statement, known)
    assert [check.code for check in checks if check.state is CheckState.CONTRAINDICATED] == wrong
