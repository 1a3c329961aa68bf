"""The appraisal: evidence, collateral, policy and one clock in; one result with every check in it out.

Read `appraise` first. Each check is recorded at the place that carries its tag, such as `check 08`.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.attestation.catalogue import DATASET_CHECKS, RECEIPT_CHECKS
from trainer.attestation.checks import Check, Ledger
from trainer.attestation.claims.claims_checks import judge_binding, judge_job, judge_nonce_use, judge_time
from trainer.attestation.claims.receipt_checks import judge_receipt
from trainer.attestation.dstack.app_checks import judge_app
from trainer.attestation.dstack.compose import compose_hash
from trainer.attestation.evidence import DatasetClaims, Evidence, ReceiptClaims
from trainer.attestation.nvidia.boot_checks import judge_gpu
from trainer.attestation.nvidia.certificate_chain import NVIDIA_ROOT_SHA256, Chain
from trainer.attestation.nvidia.gpu_endorsements import NO_ENDORSEMENTS, GpuEndorsements
from trainer.attestation.nvidia.gpu_report_checks import GpuReportContext, judge_gpu_reports
from trainer.attestation.nvidia.rim import NVIDIA_RIM_ROOT_SHA256
from trainer.attestation.nvidia.spdm_report import gpu_nonce
from trainer.attestation.policy import Policy, endorsements_of
from trainer.attestation.result.attestation_result import APPRAISER, AttestationResult
from trainer.attestation.tdx.quote_checks import QuoteFindings, judge_quote
from trainer.errors import ErrorCode, VerificationError


def appraise(
    evidence: Evidence,
    *,
    collateral: bytes,
    policy: Policy,
    nonce: str,
    now: int,
    peer_spki_sha256: str | None,
    nonce_unused: bool | None = None,
    endorsements: GpuEndorsements = NO_ENDORSEMENTS,
    gpu_root_sha256: str = NVIDIA_ROOT_SHA256,
    gpu_rim_root_sha256: str = NVIDIA_RIM_ROOT_SHA256,
) -> AttestationResult:
    """Judge evidence that a dataset may be sealed to.

    01 quote-format           19 td-xfam           37 nonce                 55 gpu-boot-revocation
    02 quote-trailing-bytes   20 service-td        38 nonce-unused          56 gpu-boot-count
    03 collateral-format      21 mr-owner          39 claims-validity       57 gpu-boot-models
    04 root-of-trust          22 mr-owner-config   40 freshness             58 gpu-boot-versions
    05 collateral-signature   23 os-measurements   41 tls-key               59 gpu-report-format
    06 collateral-validity    24 os-development    42 job-spec-digest       60 gpu-report-chain
    07 platform-certificate   25 event-log-format  43 recipient             61 gpu-report-signature
    08 quote-signature        26 event-digests     44 receipt-key           62 gpu-report-nonce
    09 quoting-enclave        27 event-order       45 gpu-evidence          63 gpu-report-fwid
    10 tcb-level              28 rtmr3-replay      46 gpu-boot              64 gpu-report-count
    11 tcb-status             29 compose-hash      47 gpu-required          65 gpu-report-versions
    12 tcb-grace              30 compose-accepted  48 gpu-cc-mode           66 gpu-report-models
    13 tcb-advisories         31 app-id            49 gpu-devtools          67 gpu-report-measurements
    14 tcb-evaluation-number  32 mr-config-id      50 gpu-boot-claims       68 gpu-report-revocation
    15 tdx-module             33 key-provider      51 gpu-boot-result       69 sandbox
    16 mr-seam                34 key-chain         52 gpu-boot-secure-boot
    17 td-debug               35 key-possession    53 gpu-boot-debug
    18 td-attributes          36 report-data       54 gpu-boot-nonce

    All of them run, whatever the earlier ones found, unless there is nothing left to look at (`not-reached`).

    Args:
        evidence: what the job shows.
        collateral: what is known of its platform: `QuoteCollateralV3` in JSON.
        policy: what the provider demands.
        nonce: what this provider asked with.
        now: Unix seconds; the only clock.
        peer_spki_sha256: digest of the TLS key that the evidence came from; None if it came as a file.
        nonce_unused: whether the nonce was never used for other evidence, as far as the caller keeps a record of
            nonces; None if it keeps none.
        endorsements: what was fetched about fresh GPU reports, where the policy names a service for it; what the
            policy holds itself is taken from there.
        gpu_root_sha256: fingerprint of the root that vouches for GPUs; another than NVIDIA's is for tests.
        gpu_rim_root_sha256: fingerprint of the root that vouches for GPUs' reference values; likewise.

    Raises:
        VerificationError: the evidence is for another purpose than to be sealed to.
        UsageError: the policy demands reference values, and the libraries that read them are not installed.
    """
    claims, ledger = _dataset_claims(evidence), Ledger(DATASET_CHECKS)
    known = endorsements_of(policy.gpu, fetched=endorsements)
    # Asked about the claims' nonce, which check 37 compares with the provider's: a wrong one gets one answer.
    question = GpuReportContext(gpu_nonce(claims.nonce), now, gpu_root_sha256, known, gpu_rim_root_sha256)
    quote = judge_quote(ledger, evidence.quote, collateral, policy, now)
    events = judge_app(ledger, evidence, claims, quote.td, policy)
    judge_binding(ledger, claims, quote.td, nonce, peer_spki_sha256)
    judge_nonce_use(ledger, nonce_unused)
    judge_time(ledger, claims, policy, now)
    judge_job(ledger, claims, policy)
    judge_gpu(ledger, claims, evidence.gpu, events, policy)
    chains = judge_gpu_reports(ledger, evidence.gpu.fresh, policy.gpu, question)
    return AttestationResult(
        checks=ledger.checks(),
        claims=claims,
        recipient=getattr(claims.recipients, policy.app.recipient),
        td=quote.td,
        compose_sha256=compose_hash(evidence.app_compose),
        policy_sha256=policy.sha256(),
        appraised_at=now,
        expires_at=_expiry(claims, policy, quote, chains, now),
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


def _expiry(claims: DatasetClaims, policy: Policy, quote: QuoteFindings, chains: Sequence[Chain], now: int) -> int:
    """Until when claims, the policy's patience, the collateral and the GPUs' certificates all hold."""
    oldest = min(claims.issued_at, now) + policy.freshness.max_age_seconds
    collateral = now if quote.valid_until is None else quote.valid_until
    ends = [int(each.not_valid_after_utc.timestamp()) for chain in chains for each in chain]
    return min(claims.expires_at, oldest, collateral, *ends)


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

    01 to 22 as in `appraise`, then

    23 earlier-result       26 same-job             29 claims-validity
    24 same-vm              27 statement-digest
    25 compose-hash         28 report-data

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
