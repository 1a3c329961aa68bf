"""Key derivation and signature chains: against dstack's own keys, and link by link."""

import json
from pathlib import Path

import coincurve
import pytest
from Crypto.Hash import keccak
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from trainer.simulator.key_service import Algorithm, AppKeys, KeyService, derive_key

APP_ID = bytes(range(20))
# Of dstack's own simulator: the app id in its recorded event log, and the root that FACTS of its keys recover.
DSTACK_APP_ID = bytes.fromhex("5bb4ff9a3837357f19dc176407a5709c62eb6c56")
DSTACK_ROOT = "0321529e458424ab1f710a3a57ec4dad2fb195ddca572f7469242ba6c7563085b6"


def recover(signature: bytes, message: bytes) -> bytes:
    digest = keccak.new(digest_bits=256, data=message).digest()
    return coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None).format()


@pytest.fixture
def keys() -> AppKeys:
    return KeyService(b"a seed of at least 16").app_keys(APP_ID)


def test_real_chain_leads_to_the_real_root(vectors: Path) -> None:
    real = json.loads((vectors / "kms" / "appkeys.json").read_text())
    keys = AppKeys(bytes.fromhex(real["k256_key"]), bytes.fromhex(real["k256_signature"]))
    derived = keys.derive("some/path", "sealing")
    assert (
        recover(derived.signature_chain[0], b"sealing:" + derived.public_key.hex().encode())
        == keys.public_key
    )
    issued = b"dstack-kms-issued:" + DSTACK_APP_ID + keys.public_key
    assert recover(derived.signature_chain[1], issued).hex() == DSTACK_ROOT


def test_derivation_vector(vectors: Path) -> None:
    """HKDF-SHA256 written out with hmac, over the real app key."""
    import hashlib
    import hmac

    secret = bytes.fromhex(json.loads((vectors / "kms" / "appkeys.json").read_text())["k256_key"])
    pseudo_random = hmac.new(b"RATLS", secret, hashlib.sha256).digest()
    expected = hmac.new(pseudo_random, b"some/path" + b"\x01", hashlib.sha256).digest()
    assert derive_key(secret, b"some/path") == expected


def test_simulated_chain_leads_to_the_simulated_root(keys: AppKeys) -> None:
    derived = keys.derive("path", "purpose")
    assert (
        recover(derived.signature_chain[0], b"purpose:" + derived.public_key.hex().encode())
        == keys.public_key
    )
    root = recover(derived.signature_chain[1], b"dstack-kms-issued:" + APP_ID + keys.public_key)
    assert root == KeyService(b"a seed of at least 16").root_public_key


def test_purpose_and_algorithm_do_not_change_the_secret(keys: AppKeys) -> None:
    secrets = {
        keys.derive("path", purpose, algorithm).secret
        for purpose in ("", "a", "b")
        for algorithm in Algorithm
    }
    assert len(secrets) == 1


@given(first=st.text(max_size=64), second=st.text(max_size=64))
def test_paths_are_separate(first: str, second: str) -> None:
    keys = KeyService(b"a seed of at least 16").app_keys(APP_ID)
    assert (keys.derive(first).secret == keys.derive(second).secret) == (first == second)


def test_apps_and_services_are_separate() -> None:
    services = [KeyService(b"a seed of at least 16"), KeyService(b"another seed for tests")]
    secrets = {
        service.app_keys(app).derive("p").secret
        for service in services
        for app in (APP_ID, bytes(20))
    }
    assert len(secrets) == 4


def test_ed25519_public_key_is_of_the_secret(keys: AppKeys) -> None:
    derived = keys.derive("path", "", Algorithm.ED25519)
    private = ed25519.Ed25519PrivateKey.from_private_bytes(derived.secret)
    assert derived.public_key == private.public_key().public_bytes_raw()


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("", Algorithm.SECP256K1),
        ("k256", Algorithm.SECP256K1),
        ("secp256k1", Algorithm.SECP256K1),
        ("ed25519", Algorithm.ED25519),
    ],
)
def test_algorithms_by_the_names_of_requests(name: str, algorithm: Algorithm) -> None:
    assert Algorithm.parse(name) is algorithm


def test_unknown_algorithm_is_refused() -> None:
    for name in ("rsa", "ed25519_prehashed", "secp256k1_prehashed"):
        with pytest.raises(ValueError, match="is not a valid"):
            Algorithm.parse(name)
