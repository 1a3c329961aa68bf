"""Checks 23 to 29 of a receipt's evidence: the same VM, the same job, this statement."""

from __future__ import annotations

from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.claims.binding import report_data
from trainer.attestation.dstack.compose import compose_hash
from trainer.attestation.evidence import ReceiptClaims
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.tdx.td_report import TdReport
from trainer.encoding import sha256_hex


def judge_receipt(
    ledger: Ledger,
    app_compose: str,
    claims: ReceiptClaims,
    td: TdReport | None,
    *,
    statement: bytes,
    earlier: AttestationResult,
) -> None:
    """Record what links a receipt to the result that the dataset was sealed to.

    Args:
        ledger: where to.
        app_compose: compose text beside the receipt.
        claims: the receipt's claims.
        td: its TD report; None where the quote could not be read.
        statement: the signed statement's bytes.
        earlier: the result that the dataset was sealed to.
    """
    # receipt check 23 earlier-result
    ledger.compare(CheckCode.EARLIER_RESULT, expected="pass", found=earlier.status)
    _judge_vm(ledger, app_compose, td, earlier)
    # receipt check 26 same-job
    ledger.compare(CheckCode.SAME_JOB, expected=earlier.job_spec_sha256, found=claims.job_spec_sha256)
    # receipt check 27 statement-digest
    ledger.compare(CheckCode.STATEMENT_DIGEST, expected=sha256_hex(statement), found=claims.statement_sha256)
    # receipt check 28 report-data
    if td is not None:
        ledger.compare(CheckCode.REPORT_DATA, expected=report_data(claims), found=td.report_data)
    # receipt check 29 claims-validity
    begin = earlier.claims.issued_at
    ledger.judge(
        CheckCode.CLAIMS_VALIDITY,
        claims.issued_at >= begin,
        expected=f"issued at {begin} or later",
        found=claims.issued_at,
    )


def _judge_vm(ledger: Ledger, app_compose: str, td: TdReport | None, earlier: AttestationResult) -> None:
    if td is None or earlier.td is None:
        return
    # receipt check 24 same-vm
    names = ("MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3")
    pairs = zip(names, earlier.td.registers, td.registers, strict=True)
    other = [name for name, before, after in pairs if before != after]
    ledger.compare(CheckCode.SAME_VM, expected="all registers equal", found=_registers_text(other))
    # receipt check 25 compose-hash
    ledger.compare(CheckCode.COMPOSE_HASH, expected=earlier.compose_sha256, found=compose_hash(app_compose))


def _registers_text(other: list[str]) -> str:
    return f"another {', '.join(other)}" if other else "all registers equal"
