"""Claims → `report_data`: the 64 bytes of a quote through which hardware vouches for the claims."""

from __future__ import annotations

import hashlib
from typing import Final

from trainer.attestation.evidence import DatasetClaims, GpuEvidence, ReceiptClaims
from trainer.encoding import canonical_json, sha256_hex

REPORT_DATA_DOMAIN: Final = b"confidential-trainer/report-data/v1"


def report_data(claims: DatasetClaims | ReceiptClaims) -> bytes:
    """All 64 bytes: SHA-512 over the domain, a zero byte and the claims' canonical JSON."""
    canonical = canonical_json(claims.model_dump(mode="json"))
    return hashlib.sha512(REPORT_DATA_DOMAIN + b"\0" + canonical).digest()


def gpu_evidence_sha256(gpu: GpuEvidence) -> str | None:
    """What `DatasetClaims.gpu_evidence_sha256` must be for this GPU evidence; None where there is none."""
    if not gpu.boot and not gpu.fresh:
        return None
    return sha256_hex(canonical_json(gpu.model_dump(mode="json")))
