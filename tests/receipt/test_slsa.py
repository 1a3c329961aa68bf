"""Receipt and public provenance against the published schemas: in-toto Statement v1 and SLSA provenance v1.

The schemas are the protocol buffers of the in-toto attestation framework. Their JSON parser refuses unknown fields
and values of other types; what SLSA requires beyond types is asserted.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from google.protobuf.json_format import Parse, ParseError
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from trainer.errors import ErrorCode
from trainer.receipt.public_provenance import make_public_provenance
from trainer.receipt.statement import ReceiptOutcome, parse_statement
from trainer.receipt.statement_writer import StatementInputs, make_statement


def validate(payload: bytes) -> tuple[Any, Any]:
    """Returns statement and predicate as messages of the schemas."""
    statement: Any = Parse(payload, StatementMessage())
    Statement.copy_from_pb(statement).validate()
    predicate = json.dumps(json.loads(payload)["predicate"])
    return statement, Parse(predicate, Provenance())


@pytest.mark.parametrize("public", [False, True])
def test_a_statement_is_slsa_provenance(run: StatementInputs, public: bool) -> None:
    payload = make_statement(run)
    if public:
        payload = make_public_provenance(parse_statement(payload))
    statement, provenance = validate(payload)
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    assert {subject.name: subject.digest["sha256"] for subject in statement.subject} == dict(
        run.files
    )
    # slsa.dev/spec/v1.0/provenance marks these as required; both are URIs.
    assert provenance.build_definition.build_type.startswith("urn:")
    assert provenance.build_definition.external_parameters.fields
    assert ":" in provenance.run_details.builder.id
    for dependency in provenance.build_definition.resolved_dependencies:
        assert dependency.digest["sha256"]
    assert provenance.run_details.metadata.finished_on.seconds == run.finished_at
    if not public:
        (byproduct,) = provenance.run_details.byproducts
        assert json.loads(byproduct.content)["outcome"] == "succeeded"


def test_so_is_that_of_a_failure(run: StatementInputs) -> None:
    failed = {
        "outcome": ReceiptOutcome.FAILED,
        "error": ErrorCode.INTERNAL,
        "files": {"failure.json": "1" * 64},
    }
    validate(make_statement(dataclasses.replace(run, **failed)))  # type: ignore[arg-type]


def test_the_schema_refuses_what_is_none(run: StatementInputs) -> None:
    document = json.loads(make_statement(run))
    document["predicate"]["runDetails"]["invocation"] = "1"
    with pytest.raises(ParseError):
        validate(json.dumps(document).encode())
