"""verify: a job is reached, its evidence appraised; what comes of it can be kept."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from trainer.attestation.evidence import Evidence, parse_evidence
from trainer.attestation.policy import (
    CollateralDocument,
    Policy,
)
from trainer.attestation.result.record import Record, load_record, make_record
from trainer.attestation.verifier import appraise
from trainer.encoding import sha256_hex
from trainer.provider.local_files import read_small
from trainer.provider.nonces import spend_nonce
from trainer.provider.transport.carrier import Carrier
from trainer.provider.transport.collateral_download import fetch_collateral
from trainer.provider.transport.endorsement_download import fetch_gpu_endorsements


def attest(
    client: Carrier, policy: Policy, *, cache: Path, nonces: Path | None = None, now: int | None = None
) -> Record:
    """Ask a job for evidence over a fresh nonce, and appraise it. The record may be a fail.

    Args:
        client: a client that knows no pin yet.
        policy: what is demanded.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.
        now: Unix time to appraise at; None reads the clock.

    Raises:
        UnavailableError: the job or the collateral service does not answer.
        VerificationError: what the job sent is not evidence.
    """
    nonce = secrets.token_hex(32)
    evidence = parse_evidence(client.attestation(nonce))
    return appraise_evidence(
        evidence,
        policy,
        nonce=nonce,
        cache=cache,
        nonces=nonces,
        now=now,
        peer_spki_sha256=client.peer_spki_sha256,
    )


def appraise_evidence(
    evidence: Evidence,
    policy: Policy,
    *,
    nonce: str,
    cache: Path,
    nonces: Path | None = None,
    now: int | None,
    peer_spki_sha256: str | None,
) -> Record:
    """Appraise evidence that came by any way; `nonce` must be the one that the provider chose."""
    clock = int(time.time())
    at = clock if now is None else now
    collateral = policy_collateral(evidence, policy, cache=cache, now=at)
    endorsements = fetch_gpu_endorsements(evidence.gpu.fresh, policy.gpu)
    digest = sha256_hex(evidence.canonical())
    result = appraise(
        evidence,
        collateral=collateral,
        policy=policy,
        nonce=nonce,
        now=at,
        peer_spki_sha256=peer_spki_sha256,
        nonce_unused=None if nonces is None else spend_nonce(nonces, nonce, digest, now=clock),
        endorsements=endorsements,
    )
    return make_record(result, evidence=evidence, collateral=collateral, policy=policy, endorsements=endorsements)


def policy_collateral(evidence: Evidence, policy: Policy, *, cache: Path, now: int) -> bytes:
    """The collateral that the policy names: the file's content, or fetched for this quote's platform."""
    if isinstance(policy.collateral, CollateralDocument):
        return policy.collateral.document.encode()
    return fetch_collateral(bytes.fromhex(evidence.quote), policy.collateral.url, cache_dir=cache, now=now)


def read_record(path: Path) -> Record:
    """Read a saved attestation result; it is appraised again, as of then.

    Raises:
        UsageError: no such file.
        VerificationError: it does not hold, or was edited.
    """
    return load_record(read_small(path, "attestation result"))
