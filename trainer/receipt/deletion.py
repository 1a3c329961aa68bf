"""The deletion statement: made by a job at its end, it lists what the job destroyed, and when.

Like the receipt, it is an in-toto Statement v1 in a DSSE envelope, with a quote over it. Its subject is the sealed
result. The job makes it with the offer of the result, and again when the result was acknowledged: each time after
everything that it lists is destroyed. It contains digests, names of a closed set and times, and may be public.

The quote proves that code which the provider appraised made this statement. It cannot prove that no copy exists
(docs/threat-model.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from trainer.attestation.result.attestation_result import CLOCK_SKEW_SECONDS
from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Sha256Hex, Strict, UnixTime
from trainer.receipt.statement import STATEMENT_TYPE, DigestSet, parse_receipt_json

PREDICATE_TYPE: Final = "urn:confidential-trainer:deletion:v1"
RESULT_NAME: Final = "result.tar.age"


class DestroyedItem(StrEnum):
    """Kinds of plaintext and keys that a job destroys."""

    WORKER = "worker"
    """The process that saw rows and weights has ended, and the kernel has reclaimed its memory."""
    DATASET = "dataset"
    MODEL = "base-model"
    OUTPUT = "worker-output"
    RESULT_TREE = "result-plaintext"
    LOGS = "private-logs"
    """The log was emptied; lines after that are about the job's end only."""
    IDENTITIES = "dataset-keys"
    """The supervisor's copies of the private keys that datasets are sealed to."""


REQUIRED_ITEMS: Final = frozenset(DestroyedItem)


class DeletionPredicate(Strict):
    """The predicate: when each item was destroyed, in Unix seconds, and by which job."""

    jobSpecSha256: Sha256Hex  # noqa: N815 -- as in the receipt
    datasetManifestSha256: Sha256Hex  # noqa: N815
    acknowledged: bool
    destroyed: Annotated[
        dict[Annotated[DestroyedItem, Field(strict=False)], UnixTime], Field(max_length=16)
    ]
    signedAt: UnixTime  # noqa: N815


class DeletionSubject(Strict):
    """The sealed result of the same job."""

    name: Literal["result.tar.age"]
    digest: DigestSet


class DeletionStatement(Strict):
    """in-toto Statement v1 with a deletion predicate."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[tuple[DeletionSubject, ...], Field(min_length=1, max_length=1)]
    predicateType: Literal["urn:confidential-trainer:deletion:v1"]  # noqa: N815
    predicate: DeletionPredicate


_STATEMENT: Final = TypeAdapter(DeletionStatement)


def make_deletion_statement(deletion: DeletionPredicate, result_sha256: str) -> bytes:
    """Returns the statement as canonical JSON, the payload of its envelope.

    Args:
        deletion: what was destroyed, and when.
        result_sha256: SHA-256 of the sealed result in hex.
    """
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": RESULT_NAME, "digest": {"sha256": result_sha256}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": deletion.model_dump(mode="json"),
        }
    )


@dataclass(frozen=True)
class ExpectedDeletion:
    """What the provider compares a deletion statement with.

    Args:
        job_spec_sha256: digest of the attested job spec.
        received_at: when the statement arrived, Unix seconds.
        result_sha256: digest of the sealed result.
        manifest_sha256: digest of the dataset's manifest; None if the provider no longer has it.
    """

    job_spec_sha256: str
    received_at: int
    result_sha256: str
    manifest_sha256: str | None


def check_deletion(payload: bytes, expected: ExpectedDeletion) -> DeletionStatement:
    """Checks the payload of an envelope whose signature and quote were verified; returns the statement.

    1. It is a deletion statement. The same key signs receipts, so the predicate type has to be checked.
    2. It is about this job spec, and about the sealed result and the dataset that the provider has.
    3. It lists every item of `REQUIRED_ITEMS`.
    4. No item was destroyed after the signature, and the signature is not from the future.

    Raises:
        VerificationError: RECEIPT_INVALID (1) or RECEIPT_MISMATCH (2 to 4).
    """
    statement = parse_receipt_json(_STATEMENT, payload, what="deletion statement")  # 1
    predicate = statement.predicate
    digests = (  # 2
        ("job spec", expected.job_spec_sha256, predicate.jobSpecSha256),
        ("sealed result", expected.result_sha256, statement.subject[0].digest.sha256),
        ("dataset", expected.manifest_sha256, predicate.datasetManifestSha256),
    )
    for name, wanted, found in digests:
        if wanted is not None and wanted != found:
            raise _mismatch(f"it is about another {name}", wanted, found)
    if missing := sorted(REQUIRED_ITEMS - predicate.destroyed.keys()):  # 3
        raise _mismatch(
            "it does not list all",
            ", ".join(sorted(REQUIRED_ITEMS)),
            f"all but {', '.join(missing)}",
        )
    # The operator controls the VM's clock: times have to be in order and not from the future, no more.
    last = max(predicate.destroyed.values())
    if last > predicate.signedAt:  # 4
        raise _mismatch("something was destroyed after the signature", predicate.signedAt, last)
    if predicate.signedAt > expected.received_at + CLOCK_SKEW_SECONDS:
        raise _mismatch(
            "it is from the future", f"at most {expected.received_at}", predicate.signedAt
        )
    return statement


def _mismatch(reason: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        ErrorCode.RECEIPT_MISMATCH,
        f"deletion statement: {reason}",
        expected=expected,
        found=found,
        hint="the result itself is not touched by this; ask the operator what happened at the job's end",
    )
