"""Checks of the evidence that comes with a receipt: the same VM, the same job, this statement."""

from __future__ import annotations

from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.claims.binding import report_data
from trainer.attestation.dstack.compose import compose_hash
from trainer.attestation.evidence import ReceiptClaims
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.tdx.td_report import TdReport
from trainer.encoding import sha256_hex

EARLIER_RESULT: Final = CheckDefinition(
    "earlier-result",
    title="the result that the dataset was sealed to is a pass",
    attack="a receipt measured against evidence that was never accepted",
)
SAME_VM: Final = CheckDefinition(
    "same-vm",
    title="MRTD and RTMR0-3 are those of the VM that the dataset was sealed to",
    attack="a receipt by other code, or by another app of the same operator",
)
RECEIPT_COMPOSE_HASH: Final = CheckDefinition(
    "compose-hash",
    title="the compose text shown is the one that was appraised before sealing",
    attack="a compose file exchanged between upload and receipt",
    claim=(Submodule.APP, TrustClaim.EXECUTABLES),
)
SAME_JOB: Final = CheckDefinition(
    "same-job",
    title="the receipt is for the job spec that the dataset was sealed for",
    attack="the receipt of another job in the same VM",
)
STATEMENT_DIGEST: Final = CheckDefinition(
    "statement-digest",
    title="the claims name this very statement",
    attack="a statement exchanged after the VM vouched for another",
)
RECEIPT_REPORT_DATA: Final = CheckDefinition(
    "report-data",
    title="all 64 bytes of report_data are the digest of the claims",
    attack="changed claims",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)
RECEIPT_CLAIMS_VALIDITY: Final = CheckDefinition(
    "claims-validity",
    title="the receipt was issued after the claims that the dataset was sealed to",
    attack="replay of an earlier job's receipt",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    hint="verify the job again; compare the clocks",
)


def judge_receipt(
    ledger: Ledger,
    app_compose: str,
    claims: ReceiptClaims,
    td: TdReport | None,
    *,
    statement: bytes,
    earlier: AttestationResult,
) -> None:
    """Records what links a receipt to the result that the dataset was sealed to.

    Args:
        ledger: receives the outcomes.
        app_compose: compose text that comes with the receipt.
        claims: the receipt's claims.
        td: its TD report; None where the quote could not be read.
        statement: the signed statement's bytes.
        earlier: the result that the dataset was sealed to.
    """
    # Everything below compares with the earlier result, so that result must itself have been a pass.
    ledger.compare(EARLIER_RESULT, expected="pass", found=earlier.status)
    if td is not None and earlier.td is not None:
        names = ("MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3")
        pairs = zip(names, earlier.td.registers, td.registers, strict=True)
        different = [name for name, before, after in pairs if before != after]
        found = f"another {', '.join(different)}" if different else "all registers equal"
        ledger.compare(SAME_VM, expected="all registers equal", found=found)
        # The registers bind the measured text; this binds the text that comes with the receipt.
        found = compose_hash(app_compose)
        ledger.compare(RECEIPT_COMPOSE_HASH, expected=earlier.compose_sha256, found=found)
    # The quote covers the claims, and the claims the statement. The statement's own signature shows only who has
    # the receipt key.
    ledger.compare(SAME_JOB, expected=earlier.job_spec_sha256, found=claims.job_spec_sha256)
    ledger.compare(STATEMENT_DIGEST, expected=sha256_hex(statement), found=claims.statement_sha256)
    if td is not None:
        ledger.compare(RECEIPT_REPORT_DATA, expected=report_data(claims), found=td.report_data)
    # The same VM may have run an earlier job: its receipt was issued before these claims.
    sealed_claims_issued_at = earlier.claims.issued_at
    ledger.judge(
        RECEIPT_CLAIMS_VALIDITY,
        claims.issued_at >= sealed_claims_issued_at,
        expected=f"issued at {sealed_claims_issued_at} or later",
        found=claims.issued_at,
    )
