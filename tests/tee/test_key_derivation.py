"""Keys made of the key service's secrets."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.tee.key_derivation import (
    end_record_key,
    end_record_path,
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
def test_secret_and_spec_both_matter(
    first: bytes, second: bytes, spec: str, other_spec: str
) -> None:
    same = first == second and spec == other_spec
    assert (recipient_seed(first, spec) == recipient_seed(second, other_spec)) == same
    assert recipient_seed(first, spec) != first


@pytest.mark.parametrize(
    "digest", ["", "AB" * 32, "ab" * 31, "ab" * 33, "../" + "ab" * 32, "ab" * 32 + "\n"]
)
def test_other_digests_are_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        recipient_path(digest)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        recipient_seed(SECRET, digest)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_secrets_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"expected 32 bytes, got {length}"):
        recipient_seed(bytes(length), SPEC)


BOUND = {"job_spec_sha256": SPEC, "app_compose_sha256": "ef" * 32}


def test_the_end_record_key_is_as_documented() -> None:
    info = b"confidential-trainer/end-record/v1\0" + b"".join(
        bytes.fromhex(digest) for digest in BOUND.values()
    )
    assert end_record_key(SECRET, **BOUND) == hkdf(SECRET, info, 32)
    assert end_record_path(SPEC) == f"confidential-trainer/end-record/v1/{SPEC}"


def test_spec_and_app_both_matter_to_the_end_record() -> None:
    keys = [end_record_key(SECRET, **BOUND), end_record_key(bytes(32), **BOUND)]
    keys += [end_record_key(SECRET, **{**BOUND, name: "00" * 32}) for name in BOUND]
    assert len({bytes(key) for key in keys}) == 4
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        end_record_key(SECRET, **{**BOUND, "app_compose_sha256": ""})
    with pytest.raises(ValueError, match="expected 32 bytes, got 31"):
        end_record_key(bytes(31), **BOUND)
