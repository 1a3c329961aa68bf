"""The appraisal: from evidence, collateral, policy and a time to one result that contains every check.

Read `appraise` first, then the module of the check in question: a check is defined next to the function that
judges it, and `catalogue` lists all of them with the module of each.
"""

from __future__ import annotations

from trainer.attestation.catalogue import DATASET_CHECKS, STATEMENT_CHECKS
from trainer.attestation.checks import Check, Ledger
from trainer.attestation.claims.claims_checks import judge_binding, judge_job, judge_time
from trainer.attestation.claims.statement_checks import judge_statement
from trainer.attestation.dstack.app_checks import judge_app
from trainer.attestation.dstack.compose import compose_hash
from trainer.attestation.evidence import Evidence, StatementEvidence, StatementPurpose
from trainer.attestation.nvidia.boot_event_checks import judge_gpu_boot
from trainer.attestation.nvidia.certificate_chain import NVIDIA_ROOT_SHA256
from trainer.attestation.nvidia.gpu_endorsements import NO_ENDORSEMENTS, GpuEndorsements
from trainer.attestation.nvidia.gpu_report_checks import judge_gpu_reports
from trainer.attestation.nvidia.report_judgement import GpuReportContext
from trainer.attestation.nvidia.rim import NVIDIA_RIM_ROOT_SHA256
from trainer.attestation.nvidia.spdm_report import gpu_nonce
from trainer.attestation.policy import Policy, cautions, endorsements_of
from trainer.attestation.result.attestation_result import APPRAISER, AttestationResult
from trainer.attestation.tdx.quote_checks import judge_quote


def appraise(
    evidence: Evidence,
    *,
    collateral: bytes,
    policy: Policy,
    nonce: str | None,
    now: int,
    peer_spki_sha256: str | None,
    fresh: bool = False,
    nonce_unused: bool | None = None,
    endorsements: GpuEndorsements = NO_ENDORSEMENTS,
    gpu_root_sha256: str = NVIDIA_ROOT_SHA256,
    gpu_rim_root_sha256: str = NVIDIA_RIM_ROOT_SHA256,
) -> AttestationResult:
    """Judges evidence of a job that a dataset may be sealed to.

    Records every check of `catalogue.DATASET_CHECKS`. A failed check does not stop the others; one with nothing
    left to judge is `not-reached`, which fails the appraisal as well.

    Args:
        evidence: the evidence of the job.
        collateral: Intel's statements about its platform: `QuoteCollateralV3` in JSON.
        policy: the reference values of the provider.
        nonce: the nonce of this provider's request; None if it is not known, which leaves its check open.
        now: Unix seconds; the only time that anything is compared with.
        peer_spki_sha256: digest of the TLS key that served the evidence; None if it came as a file.
        fresh: whether `now` is the present, and `nonce` and `collateral` are of this very command. A result that
            is not fresh may be read, but nothing can be sealed to it.
        nonce_unused: whether the caller's record of nonces shows that the nonce was not used for other evidence;
            None if the caller keeps no record.
        endorsements: what was fetched about fresh GPU reports, where the policy names a service for it; documents
            in the policy itself take precedence.
        gpu_root_sha256: fingerprint of the root that certifies GPUs; another than NVIDIA's is for tests.
        gpu_rim_root_sha256: fingerprint of the root that certifies GPUs' reference values; likewise.

    Returns:
        The result, a pass or not: the caller must call `require_pass` before it relies on it.

    Raises:
        UsageError: the policy demands reference values, and the libraries that read them are not installed.
    """
    claims = evidence.claims
    ledger = Ledger(DATASET_CHECKS)
    gpu_endorsements = endorsements_of(policy.gpu, fetched=endorsements)
    # GPU reports are compared with the nonce in the claims, and `nonce` compares that one with the provider's: a
    # wrong nonce then fails one check and not two.
    context = GpuReportContext(
        gpu_nonce(claims.nonce), now, gpu_root_sha256, gpu_endorsements, gpu_rim_root_sha256
    )
    # In the order of the chain of trust: Intel's root signs for the quote, the quote's registers bind the event
    # log and the texts that it measures, and its report_data binds the claims.
    quote = judge_quote(ledger, evidence.quote, collateral, policy, now)
    events = judge_app(ledger, evidence, claims, quote.td, policy)
    judge_binding(
        ledger,
        claims,
        quote.td,
        nonce=nonce,
        nonce_unused=nonce_unused,
        peer_spki_sha256=peer_spki_sha256,
    )
    judge_time(ledger, claims, policy, now)
    judge_job(ledger, claims, policy)
    judge_gpu_boot(ledger, claims, evidence.gpu, events, policy)
    chains = judge_gpu_reports(ledger, evidence.gpu.fresh, policy.gpu, context)
    # The result ends with the first of claims, freshness, collateral and GPU certificates. Claims from the near
    # future are accepted (clock skew), but do not extend it; a quote that did not verify leaves no time at all.
    ends = [claims.expires_at, min(claims.issued_at, now) + policy.freshness.max_age_seconds]
    ends.append(now if quote.valid_until is None else quote.valid_until)
    ends += [
        int(certificate.not_valid_after_utc.timestamp())
        for chain in chains
        for certificate in chain
    ]
    return AttestationResult(
        checks=ledger.checks(),
        claims=claims,
        recipient=getattr(claims.recipients, policy.app.recipient),
        td=quote.td,
        compose_sha256=compose_hash(evidence.app_compose),
        policy_sha256=policy.sha256(),
        appraised_at=now,
        expires_at=min(ends),
        nonce=nonce,
        peer_spki_sha256=peer_spki_sha256,
        development_root=policy.is_development,
        cautions=cautions(policy),
        fresh=fresh,
        appraiser=APPRAISER,
    )


def appraise_statement_evidence(
    evidence: StatementEvidence,
    *,
    purpose: StatementPurpose,
    statement: bytes,
    earlier: AttestationResult,
    collateral: bytes,
    policy: Policy,
    now: int,
) -> tuple[Check, ...]:
    """Judges whether the VM that was appraised before sealing made this statement, with the key that signed it.

    Records every check of `catalogue.STATEMENT_CHECKS`. The statement counts only if every check is acceptable.

    Args:
        evidence: the evidence over the statement.
        purpose: the kind of statement that is wanted.
        statement: the signed statement's bytes (the DSSE payload).
        earlier: the result that the dataset was sealed to.
        collateral: as in `appraise`.
        policy: as in `appraise`; only its trust root and its sections `tcb` and `platform` are used here.
        now: Unix seconds at which the collateral must be in date; may be the time of the earlier appraisal.

    Returns:
        Every check of `catalogue.STATEMENT_CHECKS`, in order.
    """
    ledger = Ledger(STATEMENT_CHECKS)
    # The quote is fresh and needs its own verification. What runs in the VM was appraised before sealing: here
    # the registers only have to be the same.
    quote = judge_quote(ledger, evidence.quote, collateral, policy, now)
    judge_statement(
        ledger, evidence.claims, quote.td, purpose=purpose, statement=statement, earlier=earlier
    )
    return ledger.checks()
