"""The state key of a job: from all grants, in one order, and from nothing that a VM has."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from trainer.sealing.age import generate_identity
from trainer.sealing.bundle import Grant
from trainer.sealing.grant_secrets import state_secret
from trainer.sealing.sealed_checkpoint import CheckpointBinding
from trainer.sealing.state_key import checkpoint_keys, job_state_key

BINDING = CheckpointBinding(
    job_spec_sha256="ab" * 32, dataset_manifest_sha256="cd" * 32, app_compose_sha256="ef" * 32
)
RECIPIENT = str(generate_identity(hybrid=False).recipient())


def grant(secret: str, *, expires_at: int = 1800000000) -> Grant:
    return Grant(
        version=1,
        job_spec_sha256="ab" * 32,
        recipients=(RECIPIENT,),
        expires_at=expires_at,
        secret=secret,
    )


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt, written out."""
    key = hmac.digest(bytes(32), secret, "sha256")
    output, block = b"", b""
    for index in range(1, 4):
        block = hmac.digest(key, block + info + bytes([index]), hashlib.sha256)
        output += block
    return output[:length]


ONE, TWO = grant("01" * 32), grant("02" * 32)


def test_state_and_checkpoint_keys_are_as_documented() -> None:
    secrets = [hkdf(bytes([n]) * 32, b"confidential-trainer/grant-state/v1\0", 32) for n in (1, 2)]
    assert [state_secret(found.secret) for found in (ONE, TWO)] == [
        secret.hex() for secret in secrets
    ]
    key = hkdf(b"".join(secrets), b"confidential-trainer/job-state/v1\0" + bytes([0, 0, 0, 2]), 32)
    assert job_state_key([ONE, TWO]) == key
    info = b"confidential-trainer/checkpoint/v1\0" + bytes.fromhex(
        "ab" * 32 + "cd" * 32 + "ef" * 32
    )
    keys = checkpoint_keys([ONE, TWO], BINDING)
    assert bytes(keys.authentication) + bytes.fromhex(keys.label) == hkdf(key, info, 72)[32:]


def test_every_grant_and_their_order_matter() -> None:
    lists = [[ONE], [TWO], [ONE, TWO], [TWO, ONE], [ONE, ONE], [ONE, TWO, ONE]]
    assert len({bytes(job_state_key(grants)) for grants in lists}) == len(lists)
    with pytest.raises(ValueError, match="needs a grant"):
        job_state_key([])


def test_a_dataset_that_is_sealed_again_under_its_secret_has_the_same_state_key() -> None:
    assert job_state_key([ONE]) == job_state_key([grant("01" * 32, expires_at=1900000000)])


def test_everything_that_checkpoints_are_bound_to_matters() -> None:
    others = [
        BINDING.model_copy(update={name: "00" * 32}) for name in CheckpointBinding.model_fields
    ]
    labels = {checkpoint_keys([ONE], binding).label for binding in (BINDING, *others)}
    assert len(labels) == 4
