"""Checks 30 to 40 and 48: do the claims belong to this quote, this moment, this connection and this policy?"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from trainer.attestation.binding import gpu_evidence_sha256, report_data
from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.event_log import Event
from trainer.attestation.evidence import DatasetClaims, GpuEvidence
from trainer.attestation.gpu import GpuBootEvent, gpu_boot_event
from trainer.attestation.policy import Policy
from trainer.attestation.result import CLOCK_SKEW_SECONDS
from trainer.attestation.td_report import TdReport
from trainer.encoding import sha256_hex


def judge_binding(
    ledger: Ledger, claims: DatasetClaims, td: TdReport | None, nonce: str, peer_spki_sha256: str | None
) -> None:
    """Record report-data, nonce and tls-key."""
    # check 30 report-data
    if td is not None:
        ledger.compare(CheckCode.REPORT_DATA, expected=report_data(claims), found=td.report_data)
    # check 31 nonce
    ledger.compare(CheckCode.NONCE, expected=nonce, found=claims.nonce)
    # check 34 tls-key
    claimed = claims.tls_spki_sha256 or "no TLS key"
    if peer_spki_sha256 is None:
        ledger.leave_open(CheckCode.TLS_KEY, found=claimed, detail="the evidence came as a file")
    else:
        ledger.compare(CheckCode.TLS_KEY, expected=peer_spki_sha256, found=claimed)


def judge_time(ledger: Ledger, claims: DatasetClaims, policy: Policy, now: int) -> None:
    """Record claims-validity and freshness."""
    # check 32 claims-validity
    begin, end = claims.issued_at, claims.expires_at
    ledger.judge(
        CheckCode.CLAIMS_VALIDITY,
        begin - CLOCK_SKEW_SECONDS <= now < end and begin < end,
        expected=f"a time from {begin} to {end}",
        found=now,
    )
    # check 33 freshness
    limit = policy.freshness.max_age_seconds
    ledger.judge(
        CheckCode.FRESHNESS,
        now - begin <= limit,
        expected=f"at most {limit} seconds old",
        found=f"{now - begin} seconds old",
    )


def judge_job(ledger: Ledger, claims: DatasetClaims, policy: Policy) -> None:
    """Record job-spec-digest, recipient, receipt-key and sandbox."""
    specs = policy.app.job_spec_sha256
    # check 35 job-spec-digest
    ledger.judge(
        CheckCode.JOB_SPEC_DIGEST,
        claims.job_spec_sha256 in specs,
        expected=" or ".join(specs),
        found=claims.job_spec_sha256,
    )
    # check 36 recipient
    same = claims.recipients.derived == claims.recipients.instance
    ledger.judge(
        CheckCode.RECIPIENT,
        not same,
        expected=f"a recipient of its own for {policy.app.recipient}",
        found="one recipient for both uses" if same else "two recipients",
    )
    # check 37 receipt-key
    kind = _key_kind(bytes.fromhex(claims.receipt_key))
    ledger.compare(CheckCode.RECEIPT_KEY, expected="EC secp256r1", found=kind)
    # check 48 sandbox
    held = sorted(name for name, achieved in claims.sandbox.items() if achieved)
    found = ", ".join(held) or "nothing"
    if policy.sandbox == "any":
        ledger.leave_open(CheckCode.SANDBOX, found=found)
    else:
        complete = set(policy.sandbox) <= set(held)
        ledger.judge(CheckCode.SANDBOX, complete, expected=", ".join(policy.sandbox), found=found)


def _key_kind(der: bytes) -> str:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        return "not a public key"
    return f"EC {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__


def judge_gpu(
    ledger: Ledger, claims: DatasetClaims, gpu: GpuEvidence, events: Sequence[Event] | None, policy: Policy
) -> None:
    """Record gpu-evidence, gpu-boot and gpu-required."""
    # check 38 gpu-evidence
    ledger.compare(
        CheckCode.GPU_EVIDENCE,
        expected=claims.gpu_evidence_sha256 or "none",
        found=gpu_evidence_sha256(gpu) or "none",
    )
    if events is None:
        return
    try:
        event = gpu_boot_event(events)
    except ValueError:
        ledger.judge(CheckCode.GPU_BOOT, False, expected="a gpu-attestation event", found="one of another form")
        return
    _judge_boot(ledger, gpu.boot, event)
    _judge_required(ledger, event, policy)


def _judge_boot(ledger: Ledger, boot: str, event: GpuBootEvent | None) -> None:
    # check 39 gpu-boot
    if event is None and not boot:
        ledger.leave_open(CheckCode.GPU_BOOT, detail="neither measured nor shown")
        return
    ledger.compare(
        CheckCode.GPU_BOOT,
        expected=event.evidence_sha256 if event else "nothing, as the OS measured no GPU",
        found=sha256_hex(boot.encode()) if boot else "nothing",
    )


def _judge_required(ledger: Ledger, event: GpuBootEvent | None, policy: Policy) -> None:
    # check 40 gpu-required
    found = "no GPU"
    if event is not None:
        found = f"{event.devices} x {event.provider}, cc_mode {event.cc_mode}, devtools {event.devtools}"
    if not policy.gpu.required:
        ledger.leave_open(CheckCode.GPU_REQUIRED, found=found)
        return
    confidential = event is not None and event.confidential
    wanted = "1 or more x nvidia, cc_mode on, devtools False"
    ledger.judge(CheckCode.GPU_REQUIRED, confidential, expected=wanted, found=found)
