"""Verification of a statement that a job made: its signature, and the quote over it and the key that signed."""

from __future__ import annotations

from trainer.attestation.checks import Check
from trainer.attestation.evidence import StatementEvidence, StatementPurpose
from trainer.attestation.result.record import Record
from trainer.attestation.verifier import appraise_statement_evidence
from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.attested_envelope import parse_attested_envelope
from trainer.receipt.dsse import verify_envelope


def verify_statement(
    envelope: bytes,
    evidence: StatementEvidence,
    purpose: StatementPurpose,
    record: Record,
    *,
    restarted: Record | None = None,
) -> tuple[bytes, tuple[Check, ...]]:
    """Verifies that a VM which was appraised made a statement; returns its payload, and the checks.

    1. The key that the evidence names signed the envelope.
    2. The evidence, whose quote covers that key and the digest of the payload, is the same VM's, for the same job.

    The key need not be the one in the claims before sealing: a job that was started again has another.

    Args:
        envelope: the DSSE envelope.
        evidence: the evidence over the statement.
        purpose: the kind of statement that is wanted.
        record: the appraisal that the dataset was sealed on; a pass. Its time is that of the collateral.
        restarted: the appraisal of the job as it was started last, if it was. A boot measures GPU evidence of its
            own, so that registers may differ from those in `record`.

    Raises:
        VerificationError: RECEIPT_INVALID (1) or RECEIPT_MISMATCH (2), with the check that failed.
    """
    payload = verify_envelope(envelope, bytes.fromhex(evidence.claims.receipt_key))  # 1
    judged = [  # 2
        appraise_statement_evidence(
            evidence,
            purpose=purpose,
            statement=payload,
            earlier=appraised.result,
            collateral=appraised.collateral,
            policy=appraised.policy,
            now=appraised.result.appraised_at,
        )
        for appraised in (record, restarted)
        if appraised is not None
    ]
    checks = next((each for each in judged if all(check.acceptable for check in each)), judged[0])
    require_acceptable(checks)
    return payload, checks


def verify_attested(
    document: bytes, purpose: StatementPurpose, record: Record, *, restarted: Record | None = None
) -> bytes:
    """Verifies a statement that a job gives out together with its evidence; returns its payload.

    Args:
        document: an `AttestedEnvelope`.
        purpose: as for `verify_statement`.
        record: as for `verify_statement`.
        restarted: as for `verify_statement`.

    Raises:
        VerificationError: RECEIPT_INVALID or RECEIPT_MISMATCH.
    """
    attested = parse_attested_envelope(document, what=f"{purpose} statement")
    envelope = canonical_json(attested.envelope.model_dump(mode="json"))
    return verify_statement(envelope, attested.evidence, purpose, record, restarted=restarted)[0]


def require_acceptable(checks: tuple[Check, ...]) -> None:
    """Returns only if every check is affirmed or was not demanded.

    Raises:
        VerificationError: RECEIPT_MISMATCH, with the first check that is not.
    """
    for check in checks:
        if not check.acceptable:
            raise VerificationError(
                ErrorCode.RECEIPT_MISMATCH,
                f"the check {check.code} fails ({check.title})",
                expected=check.expected,
                found=check.found or check.detail,
                hint="do not rely on what the job handed out",
            )
