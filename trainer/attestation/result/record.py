"""The saved result: everything that one appraisal judged, so that it can be repeated anywhere, offline.

A record has no authority. Loading it appraises its evidence again, at the recorded time, and refuses the record if
the outcome differs: writing `pass` into the file changes nothing. Five things in a record cannot be checked
again: whose policy it holds, when it was made, who drew the nonce, whether the nonce was unused, and which TLS key
served the evidence. So a result that comes from a record is not fresh, and nothing can be sealed to it, unless the
caller has authenticated the bytes as its own; and whoever relies on a record names the policy that it must hold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, JsonValue, TypeAdapter

from trainer.attestation.checks import CheckState
from trainer.attestation.claims.claims_checks import NONCE_UNUSED
from trainer.attestation.evidence import MAX_EVIDENCE_BYTES, Evidence
from trainer.attestation.nvidia.gpu_endorsements import (
    NO_ENDORSEMENTS,
    GpuEndorsements,
    GpuEndorsementsDocument,
)
from trainer.attestation.policy import MAX_POLICY_BYTES, CollateralDocument, Policy
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.result.ear import BUILD, EAR, VERIFIER_ID, result_document
from trainer.attestation.verifier import appraise
from trainer.encoding import canonical_json, parse_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Nonce, One, Sha256Hex, Strict, UnixTime, parse_strict

MAX_RECORD_BYTES: Final = MAX_EVIDENCE_BYTES + MAX_POLICY_BYTES + (32 << 20)


class _RecordDocument(Strict):
    version: One
    evidence: Evidence
    collateral: Annotated[str, Field(max_length=4 << 20)]
    endorsements: GpuEndorsementsDocument
    policy: Policy
    nonce: Nonce | None
    nonce_unused: bool | None
    fresh: bool
    peer_spki_sha256: Sha256Hex | None
    appraised_at: UnixTime
    result: dict[str, JsonValue]
    """The outcome, for people and scripts to read; loading compares it and never relies on it."""
    tag: Sha256Hex | None = None
    """Authenticates the record on the machine that wrote it (`trainer.provider.own_files`); means nothing here."""


_RECORD: Final = TypeAdapter(_RecordDocument)


@dataclass(frozen=True)
class Record:
    """One appraisal: its outcome, and everything that it judged. Loading a record repeats the appraisal.

    Attributes:
        result: the outcome.
        evidence: the evidence that was judged.
        collateral: the collateral that the quote was verified with.
        policy: the policy that the evidence was judged by.
        endorsements: the endorsements that the GPUs were judged with.
    """

    result: AttestationResult
    evidence: Evidence
    collateral: bytes
    policy: Policy
    endorsements: GpuEndorsements = NO_ENDORSEMENTS


def save_record(record: Record) -> bytes:
    """Returns the record as canonical JSON.

    Raises:
        VerificationError: the collateral is not text, which only a failed appraisal can have.
    """
    result = record.result
    try:
        collateral = record.collateral.decode()
    except UnicodeDecodeError:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID, "the collateral", expected="JSON text", found="binary data"
        ) from None
    # Only the machine that drew the nonce recorded its use. The check records its question: open if nobody knew.
    state = result.check(NONCE_UNUSED.code).state
    document = _RecordDocument(
        version=1,
        evidence=record.evidence,
        collateral=collateral,
        endorsements=GpuEndorsementsDocument.of(record.endorsements),
        policy=record.policy,
        nonce=result.nonce,
        nonce_unused=None if state is CheckState.NOT_DEMANDED else state is CheckState.AFFIRMED,
        fresh=result.fresh,
        peer_spki_sha256=result.peer_spki_sha256,
        appraised_at=result.appraised_at,
        result=result_document(result),
    )
    return canonical_json(document.model_dump(mode="json", exclude={"tag"}))


def is_record(data: bytes) -> bool:
    """Returns whether these bytes have the keys of a record, and not of bare evidence; validates nothing else.

    Raises:
        VerificationError: not JSON, or JSON that two readers could understand differently.
    """
    try:
        document = parse_json(data)
    except ValueError as error:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID, f"neither evidence nor a record: {error}"
        ) from None
    return isinstance(document, dict) and "evidence" in document and "claims" not in document


def load_record(data: bytes, *, policy: Policy | None = None, is_authentic: bool = False) -> Record:
    """Reads a record and appraises its evidence again, at the recorded time.

    Args:
        data: the record's bytes.
        policy: the policy that the record must hold; it is judged by this one. None accepts any policy: then the
            outcome is for reading only.
        is_authentic: whether the caller wrote these very bytes itself. Only then the recorded time, nonce and
            freshness are believed.

    Raises:
        VerificationError: not a record, one under another policy, or the appraisal has another outcome than the
            recorded one.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID,
            "the record is too large",
            expected=f"at most {MAX_RECORD_BYTES} bytes",
            found=len(data),
        )
    try:
        document = parse_strict(_RECORD, data)
    except ValueError as error:
        raise VerificationError(ErrorCode.EVIDENCE_INVALID, f"record: {error}") from None
    if policy is not None and policy.sha256() != document.policy.sha256():
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            "the record was made under another policy",
            expected=policy.sha256(),
            found=document.policy.sha256(),
            hint="verify the job under the policy that you named",
        )
    # The recorded outcome is not believed: it is compared with that of a new appraisal of the recorded
    # documents.
    collateral, endorsements = document.collateral.encode(), document.endorsements.endorsements()
    result = appraise(
        document.evidence,
        collateral=collateral,
        policy=policy or document.policy,
        nonce=document.nonce,
        now=document.appraised_at,
        peer_spki_sha256=document.peer_spki_sha256,
        fresh=is_authentic and document.fresh,
        nonce_unused=document.nonce_unused,
        endorsements=endorsements,
    )
    recorded = document.result
    if recorded.get("fresh") is not document.fresh or not _agree(recorded, result_document(result)):
        status = recorded.get("status")
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            "the record's result is not what its evidence gives",
            expected=f"{result.status}, as just appraised by {BUILD}",
            found=f"{status if status in ('pass', 'fail') else 'something else'}, as recorded",
            hint="verify the job again",
        )
    return Record(result, document.evidence, collateral, policy or document.policy, endorsements)


def _agree(recorded: dict[str, JsonValue], repeated: dict[str, JsonValue]) -> bool:
    """Returns whether a recorded outcome is the one of the repeated appraisal, but for its freshness.

    Of another build of this tool, which may know other checks and name them otherwise, the verdict and the states
    of the checks that both know count. Nothing is ever read from a recorded outcome.
    """
    if (build := _build_of(recorded)) is None or build == _build_of(repeated):
        return _text_of(recorded) == _text_of(repeated)
    states, others = recorded.get("checks"), repeated["checks"]
    if not isinstance(states, dict) or not isinstance(others, dict):
        return False
    known = states.keys() & others.keys()
    return recorded.get("status") == repeated["status"] and all(
        states[code] == others[code] for code in known
    )


def _build_of(result: dict[str, JsonValue]) -> JsonValue:
    claims = result.get(EAR)
    return claims.get(VERIFIER_ID) if isinstance(claims, dict) else None


def _text_of(result: dict[str, JsonValue]) -> str:
    """Returns what is compared of a result: JSON, in which 1, 1.0 and true differ, as they do not in Python."""
    return json.dumps({**result, "fresh": None}, sort_keys=True)


def reappraise(
    record: Record, *, now: int, policy: Policy | None = None, nonce: str | None = None
) -> Record:
    """Appraises a record's evidence as of another time, or under another policy; the result is not fresh.

    The recorded collateral is used unless `policy` contains some: nothing is fetched. Which TLS key served the
    evidence stays as recorded. The recorded nonce is not used: whoever wrote the record may have chosen it.

    Args:
        record: the record.
        now: Unix seconds.
        policy: the policy to judge by; None for the recorded policy.
        nonce: the nonce that the evidence must have; None leaves it open.
    """
    before, judged_by = record.result, policy or record.policy
    # A policy that contains collateral is judged with it here, as it would be in a first appraisal.
    own = policy.collateral if policy is not None else None
    collateral = own.document.encode() if isinstance(own, CollateralDocument) else record.collateral
    result = appraise(
        record.evidence,
        collateral=collateral,
        policy=judged_by,
        nonce=nonce,
        now=now,
        peer_spki_sha256=before.peer_spki_sha256,
        endorsements=record.endorsements,
    )
    return Record(result, record.evidence, collateral, judged_by, record.endorsements)
