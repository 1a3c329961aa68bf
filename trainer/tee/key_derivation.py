"""Keys that the TEE's key service derives for one job spec, and what is made of them.

The spec's digest is in the derivation path *and* in the expansion of the secret, so another job.yaml has other
keys. Purposes have separate paths, because dstack's derivation looks at the path alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_RECIPIENT_DOMAIN: Final = "confidential-trainer/recipient/v1"
_POSSESSION_DOMAIN: Final = "confidential-trainer/possession/v1"
_END_RECORD_DOMAIN: Final = "confidential-trainer/end-record/v1"
_SECRET_BYTES: Final = 32
_SEED_BYTES: Final = 32
_END_RECORD_BYTES: Final = 32


def recipient_path(spec_sha256: str) -> str:
    """Returns the path at the key service of the secret of the derived recipient of a job spec.

    Raises:
        ValueError: not a lower-case hex SHA-256.
    """
    return f"{_RECIPIENT_DOMAIN}/{_checked(spec_sha256)}"


def possession_path(spec_sha256: str) -> str:
    """Returns the path at the key service of the key that signs claims, to show that this VM holds the app's keys.

    Raises:
        ValueError: not a lower-case hex SHA-256.
    """
    return f"{_POSSESSION_DOMAIN}/{_checked(spec_sha256)}"


def end_record_path(spec_sha256: str) -> str:
    """Returns the path at the key service of the secret of the end record of a job spec.

    Raises:
        ValueError: not a lower-case hex SHA-256.
    """
    return f"{_END_RECORD_DOMAIN}/{_checked(spec_sha256)}"


def end_record_key(secret: bytes, *, job_spec_sha256: str, app_compose_sha256: str) -> bytearray:
    """Returns the key of a job's end record: HKDF-SHA256, 32 bytes.

    Not from the grant, which a start that only offers a finished result does not have. There is no salt, and
    info = domain ‖ 0 ‖ digests of spec and app-compose.json.

    The buffer is the caller's to wipe.

    Args:
        secret: 32 bytes that the key service gave for `end_record_path(job_spec_sha256)`.
        job_spec_sha256: digest of the job spec, in hex.
        app_compose_sha256: digest of app-compose.json, in hex.

    Raises:
        ValueError: one of them has the wrong form.
    """
    return _expand(
        secret, _END_RECORD_DOMAIN, (job_spec_sha256, app_compose_sha256), _END_RECORD_BYTES
    )


def recipient_seed(secret: bytes, spec_sha256: str) -> bytearray:
    """Returns the seed of the derived age identity, 32 bytes.

    It is HKDF-SHA256(secret, no salt, info = domain ‖ 0 ‖ spec digest). The buffer is the caller's to wipe.

    Args:
        secret: 32 bytes that the key service gave for `recipient_path(spec_sha256)`.
        spec_sha256: digest of the job spec, in hex.

    Raises:
        ValueError: secret or digest have the wrong form.
    """
    return _expand(secret, _RECIPIENT_DOMAIN, (spec_sha256,), _SEED_BYTES)


def _expand(secret: bytes, domain: str, digests: Sequence[str], length: int) -> bytearray:
    """Returns `length` bytes of HKDF-SHA256 with info = domain ‖ 0 ‖ digests, in a buffer that can be wiped."""
    if len(secret) != _SECRET_BYTES:
        raise ValueError(f"secret: expected {_SECRET_BYTES} bytes, got {len(secret)}")
    # The zero byte ends the domain: no info of one domain can equal that of another. Digests have a fixed
    # length.
    info = domain.encode() + b"\0" + b"".join(bytes.fromhex(_checked(digest)) for digest in digests)
    expanded = bytearray(length)
    HKDF(hashes.SHA256(), length, salt=None, info=info).derive_into(secret, expanded)
    return expanded


def _checked(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("expected 64 lower-case hex digits")
    return digest
