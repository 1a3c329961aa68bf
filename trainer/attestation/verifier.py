"""The appraisal: evidence, collateral, policy and one clock in; one result with every check in it out.

Read `appraise` first. Each check is recorded at the place that carries its tag, such as `check 08`.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.attestation.app_checks import judge_app
from trainer.attestation.catalogue import DATASET_CHECKS, RECEIPT_CHECKS
from trainer.attestation.checks import Check, Ledger
from trainer.attestation.claims_checks import judge_binding, judge_gpu, judge_job, judge_time
from trainer.attestation.compose import compose_hash
from trainer.attestation.event_log import Event
from trainer.attestation.evidence import DatasetClaims, Evidence, ReceiptClaims
from trainer.attestation.gpu_chain import NVIDIA_ROOT_SHA256
from trainer.attestation.gpu_report import gpu_nonce
from trainer.attestation.gpu_report_checks import GpuQuestion, judge_gpu_reports
from trainer.attestation.policy import Policy
from trainer.attestation.quote_checks import QuoteFindings, judge_quote
from trainer.attestation.receipt_checks import judge_receipt
from trainer.attestation.result import APPRAISER, AttestationResult
from trainer.errors import ErrorCode, VerificationError


def appraise(
    evidence: Evidence,
    *,
    collateral: bytes,
    policy: Policy,
    nonce: str,
    now: int,
    peer_spki_sha256: str | None,
    gpu_root_sha256: str = NVIDIA_ROOT_SHA256,
) -> AttestationResult:
    """Judge evidence that a dataset may be sealed to.

    01 quote-format            13 tcb-evaluation-number   25 compose-accepted        37 receipt-key
    02 quote-trailing-bytes    14 tdx-module              26 app-id                  38 gpu-evidence
    03 collateral-format       15 td-attributes           27 mr-config-id            39 gpu-boot
    04 root-of-trust           16 td-xfam                 28 key-provider            40 gpu-required
    05 collateral-signature    17 service-td              29 key-chain               41 gpu-report-format
    06 collateral-validity     18 mr-owner                30 report-data             42 gpu-report-chain
    07 platform-certificate    19 os-measurements         31 nonce                   43 gpu-report-signature
    08 quote-signature         20 event-log-format        32 claims-validity         44 gpu-report-nonce
    09 quoting-enclave         21 event-digests           33 freshness               45 gpu-report-fwid
    10 tcb-level               22 event-order             34 tls-key                 46 gpu-report-count
    11 tcb-status              23 rtmr3-replay            35 job-spec-digest         47 gpu-report-versions
    12 tcb-advisories          24 compose-hash            36 recipient               48 sandbox

    All of them run, whatever the earlier ones found, unless there is nothing left to look at (`not-reached`).

    Args:
        evidence: what the job shows.
        collateral: what is known of its platform: `QuoteCollateralV3` in JSON.
        policy: what the provider demands.
        nonce: what this provider asked with.
        now: Unix seconds; the only clock.
        peer_spki_sha256: digest of the TLS key that the evidence came from; None if it came as a file.
        gpu_root_sha256: fingerprint of the root that vouches for GPUs; another than NVIDIA's is for tests.

    Raises:
        VerificationError: the evidence is for another purpose than to be sealed to.
    """
    claims, ledger = _dataset_claims(evidence), Ledger(DATASET_CHECKS)
    quote = judge_quote(ledger, evidence.quote, collateral, policy, now)
    events = judge_app(ledger, evidence, quote.td, policy)
    judge_binding(ledger, claims, quote.td, nonce, peer_spki_sha256)
    judge_time(ledger, claims, policy, now)
    judge_job(ledger, claims, policy)
    _judge_gpus(ledger, evidence, claims, events, policy, now, gpu_root_sha256)
    return AttestationResult(
        checks=ledger.checks(),
        claims=claims,
        recipient=getattr(claims.recipients, policy.app.recipient),
        td=quote.td,
        compose_sha256=compose_hash(evidence.app_compose),
        policy_sha256=policy.sha256(),
        appraised_at=now,
        expires_at=_expiry(claims, policy, quote, now),
        nonce=nonce,
        peer_spki_sha256=peer_spki_sha256,
        appraiser=APPRAISER,
    )


def _dataset_claims(evidence: Evidence) -> DatasetClaims:
    if isinstance(evidence.claims, DatasetClaims):
        return evidence.claims
    raise VerificationError(
        ErrorCode.EVIDENCE_INVALID, "the evidence's purpose", expected="dataset", found=evidence.claims.purpose
    )


def _judge_gpus(
    ledger: Ledger,
    evidence: Evidence,
    claims: DatasetClaims,
    events: Sequence[Event] | None,
    policy: Policy,
    now: int,
    root_sha256: str,
) -> None:
    """Record what the OS says of the GPUs, then what they say themselves."""
    judge_gpu(ledger, claims, evidence.gpu, events, policy)
    # Asked about the claims' nonce, which check 31 compares with the provider's: a wrong one gets one answer.
    question = GpuQuestion(gpu_nonce(claims.nonce), now, root_sha256)
    judge_gpu_reports(ledger, evidence.gpu.fresh, policy.gpu, question)


def _expiry(claims: DatasetClaims, policy: Policy, quote: QuoteFindings, now: int) -> int:
    """Until when claims, the policy's patience and the collateral all hold."""
    oldest = min(claims.issued_at, now) + policy.freshness.max_age_seconds
    return min(claims.expires_at, oldest, now if quote.valid_until is None else quote.valid_until)


def appraise_receipt(
    evidence: Evidence,
    *,
    statement: bytes,
    earlier: AttestationResult,
    collateral: bytes,
    policy: Policy,
    now: int,
) -> tuple[Check, ...]:
    """Judge the evidence beside a receipt: did the VM that was appraised before sealing make this statement?

    01 to 18 as in `appraise`, then

    19 earlier-result          22 same-job             24 report-data
    20 same-vm                 23 statement-digest     25 claims-validity
    21 compose-hash

    The receipt holds only if every check is acceptable.

    Args:
        evidence: evidence with claims of purpose `receipt`.
        statement: the signed statement's bytes (the DSSE payload).
        earlier: the result that the dataset was sealed to.
        collateral: as in `appraise`.
        policy: as in `appraise`; of it, only trust root and TCB section matter here.
        now: Unix seconds; when the collateral must be in date. The time of the earlier appraisal will do.

    Raises:
        VerificationError: the evidence is for another purpose.
    """
    claims = evidence.claims
    if not isinstance(claims, ReceiptClaims):
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID, "the evidence's purpose", expected="receipt", found=claims.purpose
        )
    ledger = Ledger(RECEIPT_CHECKS)
    quote = judge_quote(ledger, evidence.quote, collateral, policy, now)
    judge_receipt(ledger, evidence.app_compose, claims, quote.td, statement=statement, earlier=earlier)
    return ledger.checks()
