"""Checks 36 to 44 and 69: do the claims belong to this quote, this moment, this connection and this policy?"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.claims.binding import report_data
from trainer.attestation.evidence import DatasetClaims
from trainer.attestation.policy import Policy
from trainer.attestation.result.attestation_result import CLOCK_SKEW_SECONDS
from trainer.attestation.tdx.td_report import TdReport


def judge_binding(
    ledger: Ledger, claims: DatasetClaims, td: TdReport | None, nonce: str, peer_spki_sha256: str | None
) -> None:
    """Record report-data, nonce and tls-key."""
    # check 36 report-data
    if td is not None:
        ledger.compare(CheckCode.REPORT_DATA, expected=report_data(claims), found=td.report_data)
    # check 37 nonce
    ledger.compare(CheckCode.NONCE, expected=nonce, found=claims.nonce)
    # check 41 tls-key
    claimed = claims.tls_spki_sha256 or "no TLS key"
    if peer_spki_sha256 is None:
        ledger.leave_open(CheckCode.TLS_KEY, found=claimed, detail="the evidence came as a file")
    else:
        ledger.compare(CheckCode.TLS_KEY, expected=peer_spki_sha256, found=claimed)


def judge_nonce_use(ledger: Ledger, unused: bool | None) -> None:
    """Record nonce-unused."""
    # check 38 nonce-unused
    if unused is None:
        ledger.leave_open(CheckCode.NONCE_UNUSED, detail="no record of used nonces was kept")
    else:
        found = "unused" if unused else "used for other evidence"
        ledger.judge(CheckCode.NONCE_UNUSED, unused, expected="unused", found=found)


def judge_time(ledger: Ledger, claims: DatasetClaims, policy: Policy, now: int) -> None:
    """Record claims-validity and freshness."""
    # check 39 claims-validity
    begin, end = claims.issued_at, claims.expires_at
    ledger.judge(
        CheckCode.CLAIMS_VALIDITY,
        begin - CLOCK_SKEW_SECONDS <= now < end and begin < end,
        expected=f"a time from {begin} to {end}",
        found=now,
    )
    # check 40 freshness
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
    # check 42 job-spec-digest
    ledger.judge(
        CheckCode.JOB_SPEC_DIGEST,
        claims.job_spec_sha256 in specs,
        expected=" or ".join(specs),
        found=claims.job_spec_sha256,
    )
    # check 43 recipient
    same = claims.recipients.derived == claims.recipients.instance
    ledger.judge(
        CheckCode.RECIPIENT,
        not same,
        expected=f"a recipient of its own for {policy.app.recipient}",
        found="one recipient for both uses" if same else "two recipients",
    )
    # check 44 receipt-key
    kind = _key_kind(bytes.fromhex(claims.receipt_key))
    ledger.compare(CheckCode.RECEIPT_KEY, expected="EC secp256r1", found=kind)
    # check 69 sandbox
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
