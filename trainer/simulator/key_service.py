"""The simulated key service: application keys, keys derived from them, and the signatures that prove both.

Source: dstack's `ra-tls` (derivation), `kms` (application keys) and `guest-agent` (signature chain, signing).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import coincurve
from Crypto.Hash import keccak
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_SALT: Final = b"RATLS"
_SIGNING_PATH: Final = "vms"
_SIGNING_PURPOSE: Final = "signing"
_PREHASHED: Final = "secp256k1_prehashed"


class Algorithm(StrEnum):
    """What a derived key is used for; it does not enter the derivation."""

    SECP256K1 = "secp256k1"
    ED25519 = "ed25519"

    @classmethod
    def parse(cls, name: str) -> Algorithm:
        """The algorithm that a request names; `k256` and nothing at all mean secp256k1.

        Raises:
            ValueError: the name is not known.
        """
        return cls.SECP256K1 if name in ("", "k256") else cls(name)


@dataclass(frozen=True)
class SimulatedKey:
    """A derived private key with its public half and the chain of two signatures over it."""

    secret: bytes
    public_key: bytes
    signature_chain: tuple[bytes, bytes]
    """65 bytes r ‖ s ‖ recovery id each: by the app key over the public key, by the root over the app key."""


@dataclass(frozen=True)
class Signed:
    """Answer to a request to sign: 64-byte signature and what proves its key."""

    signature: bytes
    public_key: bytes
    signature_chain: tuple[bytes, ...]


class AppKeys:
    """Keys of one application, held by its VM.

    Args:
        app_key: 32-byte secp256k1 scalar.
        app_signature: the key service's 65-byte signature over app id and public app key.
    """

    def __init__(self, app_key: bytes, app_signature: bytes) -> None:
        self._app_key = app_key
        self._app_signature = app_signature

    @property
    def public_key(self) -> bytes:
        """Compressed SEC1 point of the app key, 33 bytes."""
        return _compressed(self._app_key)

    def derive(self, path: str, purpose: str = "", algorithm: Algorithm = Algorithm.SECP256K1) -> SimulatedKey:
        """The key for `path`. Neither purpose nor algorithm changes it; both enter the signature only."""
        secret = derive_key(self._app_key, path.encode())
        public_key = _ed25519_public(secret) if algorithm is Algorithm.ED25519 else _compressed(secret)
        signature = _sign_recoverable(self._app_key, f"{purpose}:{public_key.hex()}".encode())
        return SimulatedKey(secret, public_key, (signature, self._app_signature))

    def sign(self, algorithm: str, data: bytes) -> Signed:
        """Sign with the application's signing key.

        Raises:
            ValueError: unknown algorithm, or a pre-hashed message that is not 32 bytes long.
        """
        kind = _signing_algorithm(algorithm)
        key = self.derive(_SIGNING_PATH, _SIGNING_PURPOSE, kind)
        if kind is Algorithm.ED25519:
            signature = ed25519.Ed25519PrivateKey.from_private_bytes(key.secret).sign(data)
        else:
            digest = _message_digest(algorithm, data)
            signature = coincurve.PrivateKey(key.secret).sign_recoverable(digest, hasher=None)[:_SIGNATURE_BYTES]
        return Signed(signature, key.public_key, (signature, *key.signature_chain))


class KeyService:
    """Root of the application keys, a function of one seed.

    Args:
        seed: secret shared with the development PKI.
    """

    def __init__(self, seed: bytes) -> None:
        self._root_key = derive_key(seed, b"confidential-trainer/development-key-service/root")

    @property
    def root_public_key(self) -> bytes:
        """Compressed SEC1 point of the root, 33 bytes: what a policy can pin."""
        return _compressed(self._root_key)

    def app_keys(self, app_id: bytes) -> AppKeys:
        """Keys of an application: functions of root and app id (20 bytes), not of the application's version."""
        app_key = derive_key(self._root_key, app_id, b"app-key")
        message = b"dstack-kms-issued:" + app_id + _compressed(app_key)
        return AppKeys(app_key, _sign_recoverable(self._root_key, message))


def derive_key(secret: bytes, *context: bytes) -> bytes:
    """Key derivation of dstack: HKDF-SHA256 with salt `RATLS` and the context as info; 32 bytes."""
    return HKDF(hashes.SHA256(), _KEY_BYTES, _SALT, b"".join(context)).derive(secret)


def verify_signature(algorithm: str, data: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether a 64-byte signature, as `AppKeys.sign` makes them, is genuine.

    Raises:
        ValueError: unknown algorithm, or not a public key of it.
    """
    if _signing_algorithm(algorithm) is Algorithm.ED25519:
        return _verify_ed25519(data, signature, public_key)
    digest = _message_digest(algorithm, data)
    if len(signature) != _SIGNATURE_BYTES:
        raise ValueError(f"signature: expected {_SIGNATURE_BYTES} bytes, got {len(signature)}")
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    return coincurve.PublicKey(public_key).verify(der, digest, hasher=None)


def key_provider_info(ca_public_key: ec.EllipticCurvePublicKey) -> str:
    """The JSON that a VM measures as `key-provider`: which key service gave it its keys."""
    spki = ca_public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return json.dumps({"name": "kms", "id": spki.hex()}, separators=(",", ":"))


def _signing_algorithm(name: str) -> Algorithm:
    return Algorithm.SECP256K1 if name == _PREHASHED else Algorithm.parse(name)


def _message_digest(algorithm: str, data: bytes) -> bytes:
    if algorithm != _PREHASHED:
        digest = hashes.Hash(hashes.SHA256())
        digest.update(data)
        return digest.finalize()
    if len(data) != _KEY_BYTES:
        raise ValueError(f"data: expected a digest of {_KEY_BYTES} bytes, got {len(data)}")
    return data


def _verify_ed25519(data: bytes, signature: bytes, public_key: bytes) -> bool:
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _sign_recoverable(key: bytes, message: bytes) -> bytes:
    digest = keccak.new(digest_bits=256, data=message).digest()
    return coincurve.PrivateKey(key).sign_recoverable(digest, hasher=None)


def _compressed(key: bytes) -> bytes:
    return coincurve.PrivateKey(key).public_key.format(compressed=True)


def _ed25519_public(key: bytes) -> bytes:
    return ed25519.Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
