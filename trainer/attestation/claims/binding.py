"""`report_data`: the 64 bytes of a quote that bind the job's claims to the VM."""

from __future__ import annotations

import hashlib
from typing import Final

from trainer.attestation.evidence import DatasetClaims, GpuEvidence, StatementClaims
from trainer.encoding import canonical_json, sha256_hex

REPORT_DATA_DOMAIN: Final = b"confidential-trainer/report-data/v1"


def report_data(claims: DatasetClaims | StatementClaims) -> bytes:
    """Returns SHA-512(domain ‖ 0x00 ‖ canonical JSON of the claims), 64 bytes.

    The digest fills the field, so no byte of it is left for a caller of the guest agent to choose. The domain
    keeps a quote that was made for another protocol from being read as one over claims.
    """
    # Canonical JSON (RFC 8785) gives job and verifier the same bytes for the same claims.
    canonical = canonical_json(claims.model_dump(mode="json"))
    return hashlib.sha512(REPORT_DATA_DOMAIN + b"\0" + canonical).digest()


def gpu_evidence_sha256(gpu: GpuEvidence) -> str | None:
    """Returns the `gpu_evidence_sha256` that claims must have for this GPU evidence; None where it is empty."""
    if not gpu.boot and not gpu.fresh:
        return None
    return sha256_hex(canonical_json(gpu.model_dump(mode="json")))
