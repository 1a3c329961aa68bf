"""Checks of the evidence over a receipt, a deletion or a privacy statement: same VM, same job, this statement."""

from __future__ import annotations

from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.claims.binding import report_data
from trainer.attestation.claims.claims_checks import key_kind
from trainer.attestation.evidence import StatementClaims, StatementPurpose
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.tdx.td_report import TdReport
from trainer.durations import utc
from trainer.encoding import sha256_hex

EARLIER_RESULT: Final = CheckDefinition(
    "earlier-result",
    title="the result that the dataset was sealed to is a pass",
    attack="a statement measured against evidence that was never accepted",
)
SAME_VM: Final = CheckDefinition(
    "same-vm",
    title="MRTD and RTMR0-3 are those of the VM that the dataset was sealed to: the same OS, app and compose text",
    attack="a statement by other code, or by another app of the same operator",
)
STATEMENT_PURPOSE: Final = CheckDefinition(
    "statement-purpose",
    title="the claims are about a statement of this kind",
    attack="the quote over a statement of one kind shown for one of another",
)
SAME_JOB: Final = CheckDefinition(
    "same-job",
    title="the statement is for the job spec that the dataset was sealed for",
    attack="the statement of another job in the same VM",
)
STATEMENT_DIGEST: Final = CheckDefinition(
    "statement-digest",
    title="the claims name this very statement",
    attack="a statement exchanged after the VM vouched for another",
)
STATEMENT_RECEIPT_KEY: Final = CheckDefinition(
    "receipt-key",
    title="the key that signed the statement is an EC P-256 public key",
    attack="a signature that another tool reads in another way",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
)
STATEMENT_REPORT_DATA: Final = CheckDefinition(
    "report-data",
    title="all 64 bytes of report_data are the digest of the claims",
    attack="changed claims, such as another key that signed",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)
STATEMENT_CLAIMS_VALIDITY: Final = CheckDefinition(
    "claims-validity",
    title="the statement was issued after the claims that the dataset was sealed to",
    attack="replay of an earlier job's statement",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    hint="verify the job again; compare the clocks",
)


def judge_statement(
    ledger: Ledger,
    claims: StatementClaims,
    td: TdReport | None,
    *,
    purpose: StatementPurpose,
    statement: bytes,
    earlier: AttestationResult,
) -> None:
    """Records what links a statement to the result that the dataset was sealed to.

    Args:
        ledger: receives the outcomes.
        claims: the claims about the statement.
        td: the TD report; None where the quote could not be read.
        purpose: the kind of statement that is wanted.
        statement: the signed statement's bytes.
        earlier: the result that the dataset was sealed to.
    """
    # Everything below compares with the earlier result, so that result must itself have been a pass.
    ledger.compare(EARLIER_RESULT, expected="pass", found=earlier.status)
    # What the registers measured, event log, compose text and GPUs, was judged before sealing. With equal
    # registers it is the same, and nothing of it has to be shown again.
    if td is not None and earlier.td is not None:
        names = ("MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3")
        pairs = zip(names, earlier.td.registers, td.registers, strict=True)
        different = [name for name, before, after in pairs if before != after]
        found = f"another {', '.join(different)}" if different else "all registers equal"
        ledger.compare(SAME_VM, expected="all registers equal", found=found)
    # The quote covers the claims, and the claims the statement and the key that signed it. So the key needs no
    # other authority: a job that was started again has another one.
    ledger.compare(STATEMENT_PURPOSE, expected=purpose, found=claims.purpose)
    ledger.compare(SAME_JOB, expected=earlier.job_spec_sha256, found=claims.job_spec_sha256)
    ledger.compare(STATEMENT_DIGEST, expected=sha256_hex(statement), found=claims.statement_sha256)
    ledger.compare(
        STATEMENT_RECEIPT_KEY, expected="EC secp256r1", found=key_kind(claims.receipt_key)
    )
    if td is not None:
        ledger.compare(STATEMENT_REPORT_DATA, expected=report_data(claims), found=td.report_data)
    # A deletion statement names the sealed result, which is compared. It is there from the offer on, so before the
    # claims of a start that a provider verifies to pull the result.
    if purpose == "deletion":
        ledger.leave_open(
            STATEMENT_CLAIMS_VALIDITY,
            found=utc(claims.issued_at),
            detail="the sealed result is compared",
        )
        return
    # The same VM may have run an earlier job: its receipts were issued before these claims.
    sealed_claims_issued_at = earlier.claims.issued_at
    ledger.judge(
        STATEMENT_CLAIMS_VALIDITY,
        claims.issued_at >= sealed_claims_issued_at,
        expected=f"issued at {utc(sealed_claims_issued_at)} or later",
        found=utc(claims.issued_at),
    )
