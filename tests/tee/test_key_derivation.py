"""Keys made of the key service's secrets."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.tee.key_derivation import (
    checkpoint_material,
    checkpoint_path,
    recipient_path,
    recipient_seed,
)

SPEC = "ab" * 32
SECRET = bytes(range(32))

secrets = st.binary(min_size=32, max_size=32)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt, written out."""
    pseudo_random = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    output, block = b"", b""
    for index in range(1, 3):
        block = hmac.new(pseudo_random, block + info + bytes([index]), hashlib.sha256).digest()
        output += block
    return output[:length]


def test_paths_hold_purpose_and_digest() -> None:
    assert recipient_path(SPEC) == f"confidential-trainer/recipient/v1/{SPEC}"


def test_recipient_seed_is_as_documented() -> None:
    info = b"confidential-trainer/recipient/v1\0" + bytes.fromhex(SPEC)
    assert recipient_seed(SECRET, SPEC) == hkdf(SECRET, info, 32)


@given(first=secrets, second=secrets, spec=digests, other_spec=digests)
def test_secret_and_spec_both_matter(first: bytes, second: bytes, spec: str, other_spec: str) -> None:
    same = first == second and spec == other_spec
    assert (recipient_seed(first, spec) == recipient_seed(second, other_spec)) == same
    assert recipient_seed(first, spec) != first


@pytest.mark.parametrize("digest", ["", "AB" * 32, "ab" * 31, "ab" * 33, "../" + "ab" * 32, "ab" * 32 + "\n"])
def test_other_digests_are_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        recipient_path(digest)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        recipient_seed(SECRET, digest)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_secrets_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"expected 32 bytes, got {length}"):
        recipient_seed(bytes(length), SPEC)


BOUND = {"job_spec_sha256": SPEC, "dataset_manifest_sha256": "cd" * 32, "app_compose_sha256": "ef" * 32}
TOKEN = "12" * 32


def test_checkpoint_material_is_as_documented() -> None:
    info = b"confidential-trainer/checkpoint/v1\0" + b"".join(bytes.fromhex(digest) for digest in BOUND.values())
    key = hmac.new(bytes.fromhex(TOKEN), SECRET, hashlib.sha256).digest()
    output, block = b"", b""
    for index in range(1, 4):
        block = hmac.new(key, block + info + bytes([index]), hashlib.sha256).digest()
        output += block
    assert checkpoint_material(SECRET, TOKEN, **BOUND) == output[:72]
    assert checkpoint_path(SPEC) == f"confidential-trainer/checkpoint/v1/{SPEC}"


def test_everything_that_checkpoints_are_bound_to_matters() -> None:
    material = checkpoint_material(SECRET, TOKEN, **BOUND)
    others = [checkpoint_material(SECRET, TOKEN, **{**BOUND, name: "00" * 32}) for name in BOUND]
    others += [checkpoint_material(bytes(32), TOKEN, **BOUND), checkpoint_material(SECRET, "13" * 32, **BOUND)]
    assert len({bytes(made) for made in [material, *others]}) == len(others) + 1
    for broken in ({**BOUND, "job_spec_sha256": "AB" * 32}, {**BOUND, "app_compose_sha256": ""}):
        with pytest.raises(ValueError, match="64 lower-case hex digits"):
            checkpoint_material(SECRET, TOKEN, **broken)
    with pytest.raises(ValueError, match="expected 32 bytes, got 31"):
        checkpoint_material(bytes(31), TOKEN, **BOUND)
