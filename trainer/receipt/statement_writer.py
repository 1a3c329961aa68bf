"""Makes the receipt's payload from what a job knows at its end; `statement` has the format."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode
from trainer.models import UnixTime
from trainer.receipt.statement import (
    BUILD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    ReceiptOutcome,
    dataset_dependencies,
    model_dependencies,
    recipient_fingerprint,
)
from trainer.spec import JobSpec


@dataclass(frozen=True)
class StatementInputs:
    """Everything that a statement is made from.

    Args:
        spec: the job spec.
        files: maps each file of the result to its SHA-256.
        dataset_files: maps each data file of the bundle to its salted digest.
        dataset_manifest_sha256: digest of the bundle's manifest.
        recipients: the grant's age recipients, as text.
        compose_sha256: measured compose hash.
        software: library names and versions.
        started_at: Unix seconds.
        finished_at: Unix seconds.
        run: random id of the run, 32 hex digits.
        outcome: whether the job made weights.
        metrics: what the worker reported.
        error: error code of a failure.
    """

    spec: JobSpec
    files: Mapping[str, str]
    dataset_files: Mapping[str, str]
    dataset_manifest_sha256: str
    recipients: tuple[str, ...]
    compose_sha256: str
    software: Mapping[str, str]
    started_at: UnixTime
    finished_at: UnixTime
    run: str
    outcome: ReceiptOutcome
    metrics: Mapping[str, JsonValue]
    error: ErrorCode | None = None


def make_statement(inputs: StatementInputs) -> bytes:
    """Returns the statement as canonical JSON, the payload of the DSSE envelope."""
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [
            _resource_descriptor(name, digest) for name, digest in sorted(inputs.files.items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": _build_definition(inputs),
            "runDetails": _run_details(inputs),
        },
    }
    return canonical_json(document)


def _resource_descriptor(name: str, digest: str) -> dict[str, JsonValue]:
    return {"name": name, "digest": {"sha256": digest}}


def _build_definition(inputs: StatementInputs) -> dict[str, JsonValue]:
    spec = inputs.spec.model_dump(mode="json", exclude_unset=True)
    inputs_listed = (*model_dependencies(spec), *dataset_dependencies(inputs.dataset_files))
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            # As written, without defaults: the digest of its canonical JSON is then the attested one.
            "jobSpec": spec,
            "jobSpecSha256": inputs.spec.sha256(),
        },
        "internalParameters": {
            "recipients": [recipient_fingerprint(recipient) for recipient in inputs.recipients],
            "datasetManifestSha256": inputs.dataset_manifest_sha256,
        },
        "resolvedDependencies": [
            _resource_descriptor(name, digest) for name, digest in inputs_listed
        ],
    }


def _run_details(inputs: StatementInputs) -> dict[str, JsonValue]:
    summary: dict[str, JsonValue] = {
        "outcome": inputs.outcome.value,
        "metrics": dict(inputs.metrics),
    }
    if inputs.error is not None:
        summary["error"] = inputs.error.value
    # Beside the metrics too: `receipt_appraisal` compares this ε and δ with what the grant demands.
    if inputs.metrics.get("privacy") is not None:
        summary["privacy"] = inputs.metrics["privacy"]
    started, finished = (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for seconds in (inputs.started_at, inputs.finished_at)
    )
    return {
        "builder": {
            "id": f"urn:confidential-trainer:compose:sha256:{inputs.compose_sha256}",
            "version": dict(inputs.software),
        },
        "metadata": {
            "invocationId": inputs.run,
            "startedOn": started,
            "finishedOn": finished,
        },
        "byproducts": [
            {
                "name": "outcome",
                "mediaType": "application/json",
                "content": base64.b64encode(canonical_json(summary)).decode(),
            }
        ],
    }
