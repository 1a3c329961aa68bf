"""The in-toto Statement v1 of a job, with a SLSA provenance v1 predicate.

| SLSA field | holds |
|---|---|
| `subject` | every file of the result but the receipt and its evidence, by SHA-256 |
| `buildDefinition.externalParameters` | the job spec as written, and its digest |
| `buildDefinition.internalParameters` | fingerprints of the recipients, digest of the sealed dataset's manifest |
| `buildDefinition.resolvedDependencies` | each file of the base model, the dataset's manifest |
| `runDetails.builder` | compose hash of the measured app, versions of the libraries |
| `runDetails.metadata` | start and end, UTC |
| `runDetails.byproducts` | outcome, metrics, privacy of the weights; of a failure its code |
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, ValidationError

from trainer.encoding import canonical_json, parse_json, sha256_hex
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Sha256Hex, Strict, UnixTime
from trainer.spec import JobSpec

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:confidential-trainer:lora-fine-tuning:v1"
UNSIGNED_FILES: Final = frozenset({"receipt.json", "evidence.json"})
"""Files of a result that the statement cannot list: itself, and the evidence made over it."""

Timestamp = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class ReceiptOutcome(StrEnum):
    """How the job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class DigestSet(Strict):
    """Digest set of in-toto with the one algorithm used here."""

    sha256: Sha256Hex


class ResourceDescriptor(Strict):
    """A named thing with a digest (in-toto ResourceDescriptor)."""

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    digest: DigestSet


class ExternalParameters(Strict):
    """What the operator and the provider agreed on."""

    jobSpec: dict[str, JsonValue]  # noqa: N815 -- SLSA spells in camel case
    jobSpecSha256: Sha256Hex  # noqa: N815


class InternalParameters(Strict):
    """What the sealed bundle added: who may read the result."""

    recipients: Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=16)]
    datasetManifestSha256: Sha256Hex  # noqa: N815


class BuildDefinition(Strict):
    """What was to be made, from what."""

    buildType: Literal["urn:confidential-trainer:lora-fine-tuning:v1"]  # noqa: N815
    externalParameters: ExternalParameters  # noqa: N815
    internalParameters: InternalParameters  # noqa: N815
    resolvedDependencies: tuple[ResourceDescriptor, ...]  # noqa: N815


class Builder(Strict):
    """The measured app that made it."""

    id: str
    version: dict[str, str]


class BuildMetadata(Strict):
    """When it was made."""

    startedOn: Timestamp  # noqa: N815
    finishedOn: Timestamp  # noqa: N815


class Byproduct(Strict):
    """What is known beside the files: outcome and metrics."""

    name: Literal["outcome"]
    annotations: dict[str, JsonValue]


class RunDetails(Strict):
    """Who made it, when, and with what outcome."""

    builder: Builder
    metadata: BuildMetadata
    byproducts: Annotated[tuple[Byproduct, ...], Field(min_length=1, max_length=1)]


class ProvenancePredicate(Strict):
    """SLSA provenance v1."""

    buildDefinition: BuildDefinition  # noqa: N815
    runDetails: RunDetails  # noqa: N815


class Statement(Strict):
    """in-toto Statement v1."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[tuple[ResourceDescriptor, ...], Field(min_length=1, max_length=100_000)]
    predicateType: Literal["https://slsa.dev/provenance/v1"]  # noqa: N815
    predicate: ProvenancePredicate

    @property
    def files(self) -> dict[str, str]:
        """File name → SHA-256 of everything the statement covers."""
        return {resource.name: resource.digest.sha256 for resource in self.subject}

    @property
    def outcome(self) -> ReceiptOutcome:
        """How the job ended."""
        return ReceiptOutcome(str(self.predicate.runDetails.byproducts[0].annotations.get("outcome")))

    @property
    def metrics(self) -> Mapping[str, JsonValue]:
        """What the worker reported: losses, tokens, steps, seconds."""
        metrics = self.predicate.runDetails.byproducts[0].annotations.get("metrics")
        return metrics if isinstance(metrics, dict) else {}

    @property
    def privacy(self) -> JsonValue:
        """What is known of the privacy of the weights: ε and δ, and tests of what they memorised."""
        return self.predicate.runDetails.byproducts[0].annotations.get("privacy")


@dataclass(frozen=True)
class StatementInputs:
    """What the job knows when it writes its statement. Times are Unix seconds.

    `files` maps every file of the result to its SHA-256; `recipients` are age recipient strings.
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
    outcome: ReceiptOutcome
    metrics: Mapping[str, JsonValue]
    error: ErrorCode | None = None


def recipient_fingerprint(recipient: str) -> str:
    """SHA-256 of a recipient's text form."""
    return sha256_hex(recipient.encode())


def make_statement(run: StatementInputs) -> bytes:
    """Canonical JSON bytes of the statement for a run: the DSSE payload."""
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [_resource(name, digest) for name, digest in sorted(run.files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": _build_definition(run), "runDetails": _run_details(run)},
    }
    return canonical_json(document)


def _resource(name: str, digest: str) -> dict[str, JsonValue]:
    return {"name": name, "digest": {"sha256": digest}}


def _build_definition(run: StatementInputs) -> dict[str, JsonValue]:
    model = [
        _resource(f"{run.spec.model.model_name_or_path}/{name}", digest)
        for name, digest in sorted(run.spec.model.model_file_sha256.items())
    ]
    data = [_resource(f"data/{name}", digest) for name, digest in sorted(run.dataset_files.items())]
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "jobSpec": run.spec.model_dump(mode="json", exclude_unset=True),
            "jobSpecSha256": run.spec.sha256(),
        },
        "internalParameters": {
            "recipients": [recipient_fingerprint(recipient) for recipient in run.recipients],
            "datasetManifestSha256": run.dataset_manifest_sha256,
        },
        "resolvedDependencies": [*model, *data],
    }


def _run_details(run: StatementInputs) -> dict[str, JsonValue]:
    return {
        "builder": {
            "id": f"urn:confidential-trainer:compose:sha256:{run.compose_sha256}",
            "version": dict(run.software),
        },
        "metadata": {"startedOn": _timestamp(run.started_at), "finishedOn": _timestamp(run.finished_at)},
        "byproducts": [{"name": "outcome", "annotations": {**_ending(run), "metrics": dict(run.metrics)}}],
    }


def _ending(run: StatementInputs) -> dict[str, JsonValue]:
    """How it ended: of a failure also its code, and what is known of the weights' privacy beside."""
    ending: dict[str, JsonValue] = {"outcome": run.outcome.value}
    if run.error is not None:
        ending["error"] = run.error.value
    if run.metrics.get("privacy") is not None:
        ending["privacy"] = run.metrics["privacy"]
    return ending


def _timestamp(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_statement(payload: bytes) -> Statement:
    """Parse the payload of a verified envelope.

    Raises:
        VerificationError: not a statement of this form, or one that names a file twice.
    """
    try:
        parse_json(payload)
        statement = Statement.model_validate_json(payload)
        statement.outcome  # noqa: B018 -- raises ValueError where it is not one of the two
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationError(ErrorCode.RECEIPT_INVALID, f"receipt: {where}: {first['msg']}") from None
    except ValueError as error:
        raise VerificationError(ErrorCode.RECEIPT_INVALID, f"receipt: {error}") from None
    if len(statement.files) != len(statement.subject):
        raise VerificationError(ErrorCode.RECEIPT_INVALID, "receipt: a file is named twice")
    return statement
