"""The receipt's payload: an in-toto Statement v1 with a SLSA provenance v1 predicate.

Sources: in-toto.io/Statement/v1 and slsa.dev/spec/v1.0/provenance. Fields have the names of these formats:

| field | content |
|---|---|
| `subject` | every file of the result except the receipt and its evidence, by SHA-256 |
| `buildDefinition.externalParameters` | the job spec as written, and its digest |
| `buildDefinition.internalParameters` | fingerprints of the recipients, digest of the sealed dataset's manifest |
| `buildDefinition.resolvedDependencies` | the files of the base model, and of the dataset by salted digests |
| `runDetails.builder` | compose hash of the measured app, versions of the libraries |
| `runDetails.metadata` | start and end, UTC |
| `runDetails.byproducts` | one JSON document: outcome, metrics, privacy of the weights; error code |
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, JsonValue, TypeAdapter, field_validator

from trainer.encoding import canonical_json, parse_json, sha256_hex
from trainer.errors import ErrorCode, VerificationError
from trainer.model_files.companion_files import copied_digests
from trainer.models import Sha256Hex, Strict, parse_strict

_Parsed = TypeVar("_Parsed")

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:confidential-trainer:lora-fine-tuning:v1"
UNSIGNED_FILES: Final = frozenset({"receipt.json", "evidence.json"})
"""Files of a result that the statement cannot list: the receipt itself, and the evidence over the receipt."""


def _require_moment(text: str) -> str:
    datetime.datetime.fromisoformat(text)  # raises for the 30th of February
    return text


Timestamp = Annotated[
    str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"), AfterValidator(_require_moment)
]
"""A moment in UTC, to the second, as SLSA writes it."""


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

    recipients: Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=64)]
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
    """SLSA BuildMetadata: id, start and end of the run."""

    invocationId: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]  # noqa: N815
    startedOn: Timestamp  # noqa: N815
    finishedOn: Timestamp  # noqa: N815

    def seconds(self) -> tuple[int, int]:
        """Returns start and end in Unix seconds."""
        moments = (
            datetime.datetime.fromisoformat(text) for text in (self.startedOn, self.finishedOn)
        )
        started, finished = (int(moment.timestamp()) for moment in moments)
        return started, finished


class RunSummary(Strict):
    """How the run ended: the document inside the byproduct.

    Attributes:
        outcome: whether the job made weights.
        error: error code of a failure; None on success.
        metrics: what the worker reported: losses, tokens, steps, seconds.
        privacy: ε and δ of the weights and results of the memorisation audit; None if the job measured neither.
    """

    outcome: ReceiptOutcome
    error: ErrorCode | None = None
    metrics: dict[str, JsonValue]
    privacy: JsonValue = None


_RUN_SUMMARY: Final = TypeAdapter(RunSummary)


class Byproduct(Strict):
    """SLSA byproduct: an in-toto ResourceDescriptor that contains a `RunSummary`, in base64 of canonical JSON."""

    name: Literal["outcome"]
    mediaType: Literal["application/json"]  # noqa: N815
    content: str

    @field_validator("content")
    @classmethod
    def _require_one_reading(cls, content: str) -> str:
        data = base64.b64decode(content, validate=True)
        parse_strict(_RUN_SUMMARY, data)
        # Another text for the same summary would be a second statement that says the same.
        if base64.b64encode(canonical_json(parse_json(data))).decode() != content:
            raise ValueError("the content is not in canonical form")
        return content

    @property
    def summary(self) -> RunSummary:
        """The document."""
        return parse_strict(_RUN_SUMMARY, base64.b64decode(self.content))


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
    def summary(self) -> RunSummary:
        """How the run ended."""
        return self.predicate.runDetails.byproducts[0].summary

    @property
    def outcome(self) -> ReceiptOutcome:
        """Whether the job made weights."""
        return self.summary.outcome

    @property
    def metrics(self) -> Mapping[str, JsonValue]:
        """Metrics that the worker reported: losses, tokens, steps, seconds."""
        return self.summary.metrics

    @property
    def privacy(self) -> JsonValue:
        """ε and δ of the weights and results of the memorisation audit; None if the job measured neither."""
        return self.summary.privacy


def recipient_fingerprint(recipient: str) -> str:
    """Returns the SHA-256 of a recipient's text form in hex.

    A receipt lists fingerprints, because it may be shown to auditors: they can compare a recipient that they know,
    and learn none that they do not know.
    """
    return sha256_hex(recipient.encode())


def reported_privacy(privacy: JsonValue) -> tuple[float | None, float | None]:
    """Returns ε and δ from the `privacy` entry of a worker's summary or a receipt; None for a missing one."""
    entry = privacy.get("differential") if isinstance(privacy, dict) else None
    epsilon, delta = (
        (entry.get("epsilon"), entry.get("delta")) if isinstance(entry, dict) else (None, None)
    )
    return _number(epsilon), _number(delta)


def _number(value: JsonValue) -> float | None:
    """Returns a JSON number as a float, else None. RFC 8785 writes 3.0 as 3. Python's bool is an int."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def pinned_files(job_spec: Mapping[str, JsonValue]) -> dict[str, str]:
    """Maps each file of the base model that a job spec as written pins to its SHA-256; empty if it is none."""
    model = job_spec.get("model")
    files = model.get("model_file_sha256") if isinstance(model, dict) else None
    return {name: str(digest) for name, digest in files.items()} if isinstance(files, dict) else {}


def copied_files(job_spec: Mapping[str, JsonValue]) -> dict[str, str]:
    """Maps each file that a job may copy into its result, by a job spec as written, to its SHA-256."""
    data = job_spec.get("data")
    section = data if isinstance(data, dict) else {}
    return copied_digests(
        pinned_files(job_spec), section.get("chat_template"), section.get("chat_template_path")
    )


def dataset_sha256(statement: Statement) -> str:
    """Returns the digest by which a statement names the dataset: of its manifest, or of a joint job's pool."""
    return statement.predicate.buildDefinition.internalParameters.datasetManifestSha256


def model_dependencies(job_spec: Mapping[str, JsonValue]) -> list[tuple[str, str]]:
    """Returns name and SHA-256 of each file of the base model that a job spec pins, as a statement lists them."""
    model = job_spec.get("model")
    source = model.get("model_name_or_path") if isinstance(model, dict) else None
    return [(f"{source}/{name}", digest) for name, digest in sorted(pinned_files(job_spec).items())]


def dataset_dependencies(files: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns name and salted digest of each data file, as a statement lists them; `files` has manifest names."""
    return [(f"data/{name}", digest) for name, digest in sorted(files.items())]


_STATEMENT: Final = TypeAdapter(Statement)


def parse_receipt_json(adapter: TypeAdapter[_Parsed], data: bytes, *, what: str) -> _Parsed:
    """Parses JSON that a job signed or sends beside a signature.

    Raises:
        VerificationError: RECEIPT_INVALID: it does not follow the format. The message names the field, never its
            content.
    """
    try:
        return parse_strict(adapter, data)
    except ValueError as error:
        raise VerificationError(ErrorCode.RECEIPT_INVALID, f"{what}: {error}") from None


def parse_statement(payload: bytes) -> Statement:
    """Parses the payload of a verified envelope.

    Raises:
        VerificationError: RECEIPT_INVALID: it does not follow the format, or names a file twice.
    """
    statement = parse_receipt_json(_STATEMENT, payload, what="receipt")
    # `files` is a dict: of two subjects with one name, it would keep the second digest and hide the first.
    if len(statement.files) != len(statement.subject):
        raise VerificationError(ErrorCode.RECEIPT_INVALID, "receipt: a file is named twice")
    return statement
