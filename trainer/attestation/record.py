"""The result file: everything that one appraisal judged, so that whoever loads it judges it again.

A record is data, not authority. Loading it appraises its evidence at the recorded time and refuses it if the
recorded outcome is another: writing `pass` into a file opens nothing. What a record cannot show is whose policy it
holds: compare `Record.policy` with the one that is meant where the file has been out of the provider's hands.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from trainer.attestation.evidence import MAX_EVIDENCE_BYTES, Evidence
from trainer.attestation.policy import MAX_POLICY_BYTES, Policy
from trainer.attestation.result import AttestationResult, Status
from trainer.attestation.verifier import appraise
from trainer.encoding import canonical_json, parse_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Nonce, Sha256Hex, Strict, UnixTime

MAX_RECORD_BYTES: Final = MAX_EVIDENCE_BYTES + MAX_POLICY_BYTES + (8 << 20)


class _RecordedCheck(Strict):
    number: int
    code: str
    title: str
    state: str
    expected: str | None
    found: str | None
    detail: str | None


class _RecordedResult(Strict):
    """The outcome, for people and scripts to read; never believed."""

    status: Status
    recipient: str
    job_spec_sha256: Sha256Hex
    policy_sha256: Sha256Hex
    expires_at: int
    checks: tuple[_RecordedCheck, ...]


class _RecordDocument(Strict):
    version: Literal[1]
    evidence: Evidence
    collateral: Annotated[str, Field(max_length=4 << 20)]
    policy: Policy
    nonce: Nonce
    peer_spki_sha256: Sha256Hex | None
    appraised_at: UnixTime
    result: _RecordedResult


@dataclass(frozen=True)
class Record:
    """One appraisal: outcome, and everything that it judged. A loaded record was just appraised again."""

    result: AttestationResult
    evidence: Evidence
    collateral: bytes
    policy: Policy


def make_record(result: AttestationResult, *, evidence: Evidence, collateral: bytes, policy: Policy) -> Record:
    """Keep together what an appraisal judged and what it came to.

    Args:
        result: the outcome.
        evidence: what was judged.
        collateral: the collateral that it was judged with.
        policy: the policy that it was judged by.
    """
    return Record(result, evidence, collateral, policy)


def save_record(record: Record) -> bytes:
    """The record's bytes: canonical JSON.

    Raises:
        VerificationError: the collateral is not text; only a failed appraisal can have such.
    """
    result = record.result
    document = _RecordDocument(
        version=1,
        evidence=record.evidence,
        collateral=_text(record.collateral),
        policy=record.policy,
        nonce=result.nonce,
        peer_spki_sha256=result.peer_spki_sha256,
        appraised_at=result.appraised_at,
        result=_recorded(result),
    )
    return canonical_json(document.model_dump(mode="json"))


def _text(collateral: bytes) -> str:
    try:
        return collateral.decode()
    except UnicodeDecodeError:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID, "the collateral", expected="JSON text", found="binary data"
        ) from None


def result_document(result: AttestationResult) -> dict[str, object]:
    """The outcome as JSON values: status, recipient, digests, expiry and every check; what `--json` prints."""
    return _recorded(result).model_dump(mode="json")


def _recorded(result: AttestationResult) -> _RecordedResult:
    checks = tuple(_RecordedCheck(**asdict(check) | {"state": check.state.value}) for check in result.checks)
    return _RecordedResult(
        status=result.status,
        recipient=result.recipient,
        job_spec_sha256=result.job_spec_sha256,
        policy_sha256=result.policy_sha256,
        expires_at=result.expires_at,
        checks=checks,
    )


def load_record(data: bytes) -> Record:
    """Read a record and appraise its evidence again, at the recorded time.

    Raises:
        VerificationError: not a record, or its outcome is not what its evidence gives.
    """
    document = _parse(data)
    collateral = document.collateral.encode()
    result = appraise(
        document.evidence,
        collateral=collateral,
        policy=document.policy,
        nonce=document.nonce,
        now=document.appraised_at,
        peer_spki_sha256=document.peer_spki_sha256,
    )
    if _recorded(result) != document.result:
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            "the record's result is not what its evidence gives",
            expected=f"{result.status}, as just appraised",
            found=f"{document.result.status}, as recorded",
            hint="verify the job again",
        )
    return Record(result, document.evidence, collateral, document.policy)


def _parse(data: bytes) -> _RecordDocument:
    if len(data) > MAX_RECORD_BYTES:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID,
            "the record is too large",
            expected=f"at most {MAX_RECORD_BYTES} bytes",
            found=len(data),
        )
    try:
        parse_json(data)
        return _RecordDocument.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise VerificationError(ErrorCode.EVIDENCE_INVALID, f"record: {where}: {first['msg']}") from None
    except ValueError as error:
        raise VerificationError(ErrorCode.EVIDENCE_INVALID, f"record: {error}") from None
