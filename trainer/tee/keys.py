"""Keys that the TEE's key service derives for one job spec, and what is made of them.

The spec's digest is in the derivation path *and* in the expansion of the secret, so another job.yaml has other
keys. Purposes have separate paths, because dstack's derivation looks at the path alone.
"""

from __future__ import annotations

import re
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trainer.sealing.wiping import wiped

_RECIPIENT_DOMAIN: Final = "confidential-trainer/recipient/v1"
_RECEIPT_DOMAIN: Final = "confidential-trainer/receipt-key/v1"
_POSSESSION_DOMAIN: Final = "confidential-trainer/possession/v1"
_SECRET_BYTES: Final = 32
_SEED_BYTES: Final = 32
_WIDE_SCALAR_BYTES: Final = 48
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def recipient_path(spec_sha256: str) -> str:
    """Path at the key service of the secret behind the derived recipient of a job spec.

    Raises:
        ValueError: not a lower-case hex SHA-256.
    """
    return f"{_RECIPIENT_DOMAIN}/{_checked(spec_sha256)}"


def receipt_path(spec_sha256: str) -> str:
    """Path at the key service of the secret behind the receipt key of a job spec.

    Raises:
        ValueError: not a lower-case hex SHA-256.
    """
    return f"{_RECEIPT_DOMAIN}/{_checked(spec_sha256)}"


def possession_path(spec_sha256: str) -> str:
    """Path at the key service of the key that signs claims, to show that this VM holds the app's keys.

    Raises:
        ValueError: not a lower-case hex SHA-256.
    """
    return f"{_POSSESSION_DOMAIN}/{_checked(spec_sha256)}"


def recipient_seed(secret: bytes, spec_sha256: str) -> bytearray:
    """Seed of the derived age identity: HKDF-SHA256(secret, no salt, info = domain ‖ 0 ‖ spec digest), 32 bytes.

    The buffer is the caller's to wipe.

    Args:
        secret: 32 bytes that the key service gave for `recipient_path(spec_sha256)`.
        spec_sha256: digest of the job spec, in hex.

    Raises:
        ValueError: secret or digest have the wrong form.
    """
    return _expand(secret, _RECIPIENT_DOMAIN, spec_sha256, _SEED_BYTES)


def receipt_key(secret: bytes, spec_sha256: str) -> ec.EllipticCurvePrivateKey:
    """P-256 key that signs the receipt.

    The scalar is `(w mod (n - 1)) + 1`, with w 48 big-endian bytes of HKDF-SHA256(secret, no salt, info = domain ‖
    0 ‖ spec digest) and n the order of the curve: never zero, and its bias is below 2**-128 (FIPS 186-5, A.2.1).

    Args:
        secret: 32 bytes that the key service gave for `receipt_path(spec_sha256)`.
        spec_sha256: digest of the job spec, in hex.

    Raises:
        ValueError: secret or digest have the wrong form.
    """
    with wiped(_expand(secret, _RECEIPT_DOMAIN, spec_sha256, _WIDE_SCALAR_BYTES)) as expanded:
        wide = int.from_bytes(expanded, "big")
    return ec.derive_private_key(wide % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def _expand(secret: bytes, domain: str, spec_sha256: str, length: int) -> bytearray:
    if len(secret) != _SECRET_BYTES:
        raise ValueError(f"secret: expected {_SECRET_BYTES} bytes, got {len(secret)}")
    info = domain.encode() + b"\0" + bytes.fromhex(_checked(spec_sha256))
    expanded = bytearray(length)
    HKDF(hashes.SHA256(), length, salt=None, info=info).derive_into(secret, expanded)
    return expanded


def _checked(spec_sha256: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", spec_sha256):
        raise ValueError("spec_sha256: expected 64 lower-case hex digits")
    return spec_sha256
