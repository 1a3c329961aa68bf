"""The receipt's payload: an in-toto Statement v1 with a SLSA provenance v1 predicate.

Sources: in-toto.io/Statement/v1 and slsa.dev/spec/v1.0/provenance. Fields have the names of these formats:

| field | content |
|---|---|
| `subject` | every file of the result except the receipt and its evidence, by SHA-256 |
| `buildDefinition.externalParameters` | the job spec as written, and its digest |
| `buildDefinition.internalParameters` | fingerprints of the recipients, digest of the sealed dataset's manifest |
| `buildDefinition.resolvedDependencies` | the files of the base model and of the dataset, by SHA-256 |
| `runDetails.builder` | compose hash of the measured app, versions of the libraries |
| `runDetails.metadata` | start and end, UTC |
| `runDetails.byproducts` | outcome, metrics, privacy of the weights; the error code of a failure |
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
"""Files of a result that the statement cannot list: the receipt itself, and the evidence over the receipt."""

Timestamp = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class ReceiptOutcome(StrEnum):
    """Whether the job made weights."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class DigestSet(Strict):
    """in-toto DigestSet with SHA-256 as its only algorithm."""

    sha256: Sha256Hex


class ResourceDescriptor(Strict):
    """in-toto ResourceDescriptor: a file by name and digest."""

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    digest: DigestSet


class ExternalParameters(Strict):
    """SLSA: parameters under the control of whoever requests the build; here the job spec."""

    jobSpec: dict[str, JsonValue]  # noqa: N815 -- SLSA spells in camel case
    jobSpecSha256: Sha256Hex  # noqa: N815


class InternalParameters(Strict):
    """SLSA: parameters set by the builder; here taken from the sealed bundle, which the operator cannot read."""

    recipients: Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=16)]
    datasetManifestSha256: Sha256Hex  # noqa: N815


class BuildDefinition(Strict):
    """SLSA BuildDefinition: the inputs of the job."""

    buildType: Literal["urn:confidential-trainer:lora-fine-tuning:v1"]  # noqa: N815
    externalParameters: ExternalParameters  # noqa: N815
    internalParameters: InternalParameters  # noqa: N815
    resolvedDependencies: tuple[ResourceDescriptor, ...]  # noqa: N815


class Builder(Strict):
    """SLSA Builder: the measured app and the versions of its libraries."""

    id: str
    version: dict[str, str]


class BuildMetadata(Strict):
    """SLSA BuildMetadata: start and end of the job."""

    startedOn: Timestamp  # noqa: N815
    finishedOn: Timestamp  # noqa: N815


class Byproduct(Strict):
    """SLSA byproduct: outcome, metrics, privacy and error code."""

    name: Literal["outcome"]
    annotations: dict[str, JsonValue]


class RunDetails(Strict):
    """SLSA RunDetails: builder, times and byproducts of this run."""

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
        """Maps the name of each file of the result to its SHA-256."""
        return {resource.name: resource.digest.sha256 for resource in self.subject}

    @property
    def outcome(self) -> ReceiptOutcome:
        """Whether the job made weights."""
        return ReceiptOutcome(str(self.predicate.runDetails.byproducts[0].annotations.get("outcome")))

    @property
    def metrics(self) -> Mapping[str, JsonValue]:
        """Metrics that the worker reported: losses, tokens, steps, seconds."""
        metrics = self.predicate.runDetails.byproducts[0].annotations.get("metrics")
        return metrics if isinstance(metrics, dict) else {}

    @property
    def privacy(self) -> JsonValue:
        """ε and δ of the weights and results of the memorisation audit; None if the job measured neither."""
        return self.predicate.runDetails.byproducts[0].annotations.get("privacy")


@dataclass(frozen=True)
class StatementInputs:
    """Everything that a statement is made from.

    Args:
        spec: the job spec.
        files: maps each file of the result to its SHA-256.
        dataset_files: maps each data file of the bundle to its SHA-256.
        dataset_manifest_sha256: digest of the bundle's manifest.
        recipients: the grant's age recipients, as text.
        compose_sha256: measured compose hash.
        software: library names and versions.
        started_at: Unix seconds.
        finished_at: Unix seconds.
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
    outcome: ReceiptOutcome
    metrics: Mapping[str, JsonValue]
    error: ErrorCode | None = None


def recipient_fingerprint(recipient: str) -> str:
    """Returns the SHA-256 of a recipient's text form in hex.

    A receipt lists fingerprints, because it may be shown to auditors: they can compare a recipient that they know,
    and learn none that they do not know.
    """
    return sha256_hex(recipient.encode())


def make_statement(inputs: StatementInputs) -> bytes:
    """Returns the statement as canonical JSON, the payload of the DSSE envelope."""
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [_resource_descriptor(name, digest) for name, digest in sorted(inputs.files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": _build_definition(inputs), "runDetails": _run_details(inputs)},
    }
    return canonical_json(document)


def _resource_descriptor(name: str, digest: str) -> dict[str, JsonValue]:
    return {"name": name, "digest": {"sha256": digest}}


def _build_definition(inputs: StatementInputs) -> dict[str, JsonValue]:
    model = [
        _resource_descriptor(f"{inputs.spec.model.model_name_or_path}/{name}", digest)
        for name, digest in sorted(inputs.spec.model.model_file_sha256.items())
    ]
    data = [_resource_descriptor(f"data/{name}", digest) for name, digest in sorted(inputs.dataset_files.items())]
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            # As written, without defaults: the digest of its canonical JSON is then the attested one.
            "jobSpec": inputs.spec.model_dump(mode="json", exclude_unset=True),
            "jobSpecSha256": inputs.spec.sha256(),
        },
        "internalParameters": {
            "recipients": [recipient_fingerprint(recipient) for recipient in inputs.recipients],
            "datasetManifestSha256": inputs.dataset_manifest_sha256,
        },
        "resolvedDependencies": [*model, *data],
    }


def _run_details(inputs: StatementInputs) -> dict[str, JsonValue]:
    annotations: dict[str, JsonValue] = {"outcome": inputs.outcome.value, "metrics": dict(inputs.metrics)}
    if inputs.error is not None:
        annotations["error"] = inputs.error.value
    # Beside the metrics too: `receipt_appraisal` compares this ε and δ with what the grant demands.
    if inputs.metrics.get("privacy") is not None:
        annotations["privacy"] = inputs.metrics["privacy"]
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
            "startedOn": started,
            "finishedOn": finished,
        },
        "byproducts": [{"name": "outcome", "annotations": annotations}],
    }


def parse_statement(payload: bytes) -> Statement:
    """Parses the payload of a verified envelope.

    Raises:
        VerificationError: RECEIPT_INVALID: it does not follow the format, or names a file twice.
    """
    try:
        parse_json(payload)  # refuses duplicate keys
        statement = Statement.model_validate_json(payload)
        statement.outcome  # noqa: B018 -- raises ValueError for an unknown outcome
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationError(ErrorCode.RECEIPT_INVALID, f"receipt: {where}: {first['msg']}") from None
    except ValueError as error:
        raise VerificationError(ErrorCode.RECEIPT_INVALID, f"receipt: {error}") from None
    # `files` is a dict: of two subjects with one name, it would keep the second digest and hide the first.
    if len(statement.files) != len(statement.subject):
        raise VerificationError(ErrorCode.RECEIPT_INVALID, "receipt: a file is named twice")
    return statement
