"""The last word of a job: a signed statement of what it destroyed, and when.

An in-toto Statement v1 about the sealed result, in a DSSE envelope by the receipt key, like the receipt itself. It
is made when the result was acknowledged (or nobody came for it), after everything that it lists is gone; the
receipt key signs it last. It holds digests, names of a closed set and times, so it may be public.

It proves that code which the provider appraised said so. It cannot prove an absence: docs/threat-model.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from trainer.encoding import canonical_json, parse_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Sha256Hex, Strict, UnixTime
from trainer.receipt.dsse import verify_envelope
from trainer.receipt.statement import STATEMENT_TYPE, DigestSet

PREDICATE_TYPE: Final = "urn:confidential-trainer:deletion:v1"
RESULT_NAME: Final = "result.tar.age"


class DestroyedItem(StrEnum):
    """What a job has in the clear and destroys."""

    WORKER = "worker"
    """The process that saw rows and weights has ended: the kernel took its memory back."""
    DATASET = "dataset"
    MODEL = "base-model"
    OUTPUT = "worker-output"
    RESULT_TREE = "result-plaintext"
    LOGS = "private-logs"
    """Emptied: lines after that tell of the end alone."""
    IDENTITIES = "dataset-keys"
    """The private keys that a sealed dataset is addressed to: this process's copies."""


REQUIRED_ITEMS: Final = frozenset(DestroyedItem)


class DeletionPredicate(Strict):
    """Predicate: when each thing was destroyed, in Unix seconds; and which job says so."""

    jobSpecSha256: Sha256Hex  # noqa: N815 -- as in the receipt
    datasetManifestSha256: Sha256Hex  # noqa: N815
    acknowledged: bool
    destroyed: Annotated[dict[Annotated[DestroyedItem, Field(strict=False)], UnixTime], Field(max_length=16)]
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


def make_deletion_statement(deletion: DeletionPredicate, result_sha256: str) -> bytes:
    """The statement as canonical JSON, ready to be signed.

    Args:
        deletion: what was destroyed.
        result_sha256: SHA-256 of the sealed result, in hex.
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
    """What the provider knows: the job's receipt key (DER), its spec, and what of the rest is at hand.

    Times are Unix seconds. `received_at` is when the statement came; the VM's clock may be off by `skew_seconds`.
    """

    receipt_key: bytes
    job_spec_sha256: str
    received_at: int
    result_sha256: str | None = None
    manifest_sha256: str | None = None
    skew_seconds: int = 300


def verify_deletion(envelope: bytes, awaited: ExpectedDeletion) -> DeletionStatement:
    """Check a deletion statement; returns what it says.

    1. signed by the attested receipt key;
    2. a deletion statement, and nothing else that this key signs;
    3. about the same job spec, and the same sealed result and dataset where these are at hand;
    4. everything in `REQUIRED_ITEMS` is listed;
    5. nothing was destroyed after the signature, and the signature is not from the future.

    Raises:
        VerificationError: RECEIPT_INVALID (1, 2) or RECEIPT_MISMATCH (3 to 5).
    """
    statement = _parse(verify_envelope(envelope, awaited.receipt_key))  # 1, 2
    predicate = statement.predicate
    _same("job spec", awaited.job_spec_sha256, predicate.jobSpecSha256)  # 3
    _same("sealed result", awaited.result_sha256, statement.subject[0].digest.sha256)
    _same("dataset", awaited.manifest_sha256, predicate.datasetManifestSha256)
    _require_all(predicate.destroyed)  # 4
    last = max(predicate.destroyed.values())
    if last > predicate.signedAt:  # 5
        raise _mismatch("something was destroyed after the signature", predicate.signedAt, last)
    if predicate.signedAt > awaited.received_at + awaited.skew_seconds:
        raise _mismatch("it is from the future", f"at most {awaited.received_at}", predicate.signedAt)
    return statement


def _parse(payload: bytes) -> DeletionStatement:
    try:
        parse_json(payload)
        return DeletionStatement.model_validate_json(payload)
    except (ValidationError, ValueError):
        raise VerificationError(
            ErrorCode.RECEIPT_INVALID, "deletion statement", expected=PREDICATE_TYPE, found="something else"
        ) from None


def _same(what: str, expected: str | None, found: str) -> None:
    if expected is not None and expected != found:
        raise _mismatch(f"it is about another {what}", expected, found)


def _require_all(destroyed: Mapping[DestroyedItem, int]) -> None:
    missing = sorted(REQUIRED_ITEMS - destroyed.keys())
    if missing:
        raise _mismatch("it does not list all", ", ".join(sorted(REQUIRED_ITEMS)), f"all but {', '.join(missing)}")


def _mismatch(why: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        ErrorCode.RECEIPT_MISMATCH,
        f"deletion statement: {why}",
        expected=expected,
        found=found,
        hint="the result itself is not touched by this; ask the operator what happened at the job's end",
    )
