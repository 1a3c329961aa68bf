"""Checks of the claims: do they belong to this quote, this moment, this connection and this policy?"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_public_key

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.claims.binding import report_data
from trainer.attestation.evidence import DatasetClaims
from trainer.attestation.policy import Policy
from trainer.attestation.result.attestation_result import CLOCK_SKEW_SECONDS
from trainer.attestation.tdx.td_report import TdReport
from trainer.durations import utc
from trainer.encoding import sha256_hex

REPORT_DATA: Final = CheckDefinition(
    "report-data",
    title="all 64 bytes of report_data are the digest of the claims",
    attack="changed claims: recipients, keys or digests that the VM never made",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)
NONCE: Final = CheckDefinition(
    "nonce",
    title="the claims carry the nonce that was asked with",
    attack="replay of evidence from an earlier run",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    hint="ask the job again, and give the nonce that you asked with",
)
NONCE_UNUSED: Final = CheckDefinition(
    "nonce-unused",
    title="the nonce was never used for other evidence",
    attack="a nonce that others know, so that evidence can be prepared for it",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    hint="ask the job again with a new nonce of 32 random bytes",
)
CLAIMS_VALIDITY: Final = CheckDefinition(
    "claims-validity",
    title="the claims are valid now",
    attack="expired claims, or claims from the future",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    hint="verify the job again; compare the clocks",
)
FRESHNESS: Final = CheckDefinition(
    "freshness",
    title="the claims are no older than the policy allows",
    attack="evidence kept back until the VM is gone or broken into",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    hint="verify the job again; `--at` judges a saved result as of another time",
)
TLS_KEY: Final = CheckDefinition(
    "tls-key",
    title="the key that ends TLS is the one that the claims name",
    attack="a machine in the middle that relays genuine evidence",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
    hint="connect to the job itself: TLS must end inside its VM",
)
JOB_SPEC_DIGEST: Final = CheckDefinition(
    "job-spec-digest",
    title="the job spec is one that the policy lists",
    attack="config substitution: training with other settings than the agreed ones",
    claim=(Submodule.JOB, TrustClaim.CONFIGURATION),
    hint="review the job.yaml that runs there before you add it to the policy",
)
RECIPIENT: Final = CheckDefinition(
    "recipient",
    title="the recipient that the policy chose is there and stands for itself",
    attack="an upgrade attack through derived keys passed off as instance keys",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
)
RECEIPT_KEY: Final = CheckDefinition(
    "receipt-key",
    title="the receipt key is an EC P-256 public key",
    attack="a receipt that cannot be checked later",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
)
SANDBOX: Final = CheckDefinition(
    "sandbox",
    title="the job reports the sandbox that the policy demands",
    attack="a job that runs without a sandbox",
    claim=(Submodule.JOB, TrustClaim.CONFIGURATION),
    hint="ask the operator how the container was started, or demand less in `sandbox`",
)

KEY_SEPARATION: Final = CheckDefinition(
    "key-separation",
    title="the key that signs the receipt is not the key that ends TLS",
    attack="a network-facing process that signs receipts with the one key that it holds",
    claim=(Submodule.JOB, TrustClaim.INSTANCE_IDENTITY),
)


def judge_binding(
    ledger: Ledger,
    claims: DatasetClaims,
    td: TdReport | None,
    *,
    nonce: str | None,
    nonce_unused: bool | None,
    peer_spki_sha256: str | None,
) -> None:
    """Records report-data, nonce, nonce-unused and tls-key.

    Args:
        ledger: receives the outcomes.
        claims: the job's claims.
        td: the TD report; None where the quote could not be read.
        nonce: the nonce of the request; None if the provider named none.
        nonce_unused: whether the nonce was not used for other evidence; None where nobody keeps a record of it.
        peer_spki_sha256: digest of the TLS key that served the evidence; None if it came as a file.
    """
    # report_data makes the claims the VM's, the nonce makes them an answer to this request, and the TLS key
    # makes this connection end in that VM.
    if td is not None:
        ledger.compare(REPORT_DATA, expected=report_data(claims), found=td.report_data)
    if nonce is None:
        # Compared with the evidence's own nonce, old evidence would look like new evidence.
        ledger.leave_open(NONCE, found=claims.nonce, detail="no nonce of yours to compare it with")
    else:
        ledger.compare(NONCE, expected=nonce, found=claims.nonce)
    if nonce_unused is None:
        ledger.leave_open(NONCE_UNUSED, detail="no record of used nonces was kept")
    else:
        found = "unused" if nonce_unused else "used for other evidence"
        ledger.judge(NONCE_UNUSED, nonce_unused, expected="unused", found=found)
    claimed = "no TLS key" if claims.tls_key is None else sha256_hex(bytes.fromhex(claims.tls_key))
    if peer_spki_sha256 is None:
        ledger.leave_open(TLS_KEY, found=claimed, detail="the evidence came as a file")
    else:
        ledger.compare(TLS_KEY, expected=peer_spki_sha256, found=claimed)


def judge_time(ledger: Ledger, claims: DatasetClaims, policy: Policy, now: int) -> None:
    """Records claims-validity and freshness; `now` in Unix seconds."""
    start, end = claims.issued_at, claims.expires_at
    # Only the start has a tolerance: a slow clock here must not refuse claims that were just issued.
    ledger.judge(
        CLAIMS_VALIDITY,
        start - CLOCK_SKEW_SECONDS <= now < end and start < end,
        expected=f"a time from {utc(start)} to {utc(end)}",
        found=utc(now),
    )
    limit = policy.freshness.max_age_seconds
    ledger.judge(
        FRESHNESS,
        now - start <= limit,
        expected=f"at most {limit} seconds old",
        found=f"{now - start} seconds old",
    )


def judge_job(ledger: Ledger, claims: DatasetClaims, policy: Policy) -> None:
    """Records job-spec-digest, recipient, receipt-key, key-separation and sandbox."""
    # What the job says of itself, its spec and its sandbox, is believed because the accepted compose text fixes
    # its code.
    accepted = policy.app.job_spec_sha256
    ledger.judge(
        JOB_SPEC_DIGEST,
        claims.job_spec_sha256 in accepted,
        expected=" or ".join(accepted),
        found=claims.job_spec_sha256,
    )
    # With one recipient for both uses, later versions of the app could open what was sealed to the instance key.
    same = claims.recipients.derived == claims.recipients.instance
    ledger.judge(
        RECIPIENT,
        not same,
        expected=f"a recipient of its own for {policy.app.recipient}",
        found="one recipient for both uses" if same else "two recipients",
    )
    ledger.compare(RECEIPT_KEY, expected="EC secp256r1", found=key_kind(claims.receipt_key))
    # The front process holds the TLS key and reads what strangers send. It must not be able to sign a receipt.
    same = _is_same_key(claims.receipt_key, claims.tls_key)
    ledger.judge(
        KEY_SEPARATION,
        not same,
        expected="two keys",
        found="one key for both uses" if same else "two keys",
    )
    achieved = sorted(name for name, holds in claims.sandbox.items() if holds)
    found = ", ".join(achieved) or "nothing"
    if policy.sandbox == "any":
        ledger.leave_open(SANDBOX, found=found)
    else:
        complete = set(policy.sandbox) <= set(achieved)
        ledger.judge(SANDBOX, complete, expected=", ".join(policy.sandbox), found=found)


def key_kind(der_hex: str) -> str:
    """Returns the kind of a key, such as `EC secp256r1`, from its DER SubjectPublicKeyInfo in hex."""
    key = _load_key(der_hex)
    if key is None:
        return "not a public key"
    return (
        f"EC {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    )


def _is_same_key(first: str, second: str | None) -> bool:
    """Compares keys, not their encodings: one point of a curve has several."""
    if second is None:
        return False
    keys = _load_key(first), _load_key(second)
    return first == second or (None not in keys and keys[0] == keys[1])


def _load_key(der_hex: str) -> PublicKeyTypes | None:
    try:
        return load_der_public_key(bytes.fromhex(der_hex))
    except (ValueError, UnsupportedAlgorithm):
        return None
