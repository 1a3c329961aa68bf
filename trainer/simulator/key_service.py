"""The simulated key service: application keys, keys derived from them, and the signatures over both.

Source: dstack's `ra-tls` (derivation), `kms` (application keys) and `guest-agent` (signature chain, signing).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import coincurve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainer.attestation.dstack.keccak import keccak256

_KEY_BYTES: Final = 32
_SALT: Final = b"RATLS"


class Algorithm(StrEnum):
    """Signature algorithm of a derived key; it does not enter the derivation."""

    SECP256K1 = "secp256k1"
    ED25519 = "ed25519"

    @classmethod
    def parse(cls, name: str) -> Algorithm:
        """Returns the algorithm that a request names; `k256` and the empty name mean secp256k1.

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
    """65 bytes r ‖ s ‖ recovery id each: by the app key over the public key, by the root over the app key.

    The second is empty without a key service: nobody signs an app key that the VM made itself.
    """


class AppKeys:
    """Keys of one application in its VM.

    Args:
        app_key: 32-byte secp256k1 scalar.
        app_signature: the key service's 65-byte signature over app id and public app key; empty without one.

    Attributes:
        public_key: compressed SEC1 point of the app key, 33 bytes.
    """

    def __init__(self, app_key: bytes, app_signature: bytes) -> None:
        self.public_key = _compressed_point(app_key)
        self._app_key = app_key
        self._app_signature = app_signature

    def derive(
        self, path: str, purpose: str = "", algorithm: Algorithm = Algorithm.SECP256K1
    ) -> SimulatedKey:
        """Derives the key for `path`. Purpose and algorithm enter the signature, not the key."""
        secret = derive_key(self._app_key, path.encode())
        if algorithm is Algorithm.ED25519:
            public_key = (
                ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
            )
        else:
            public_key = _compressed_point(secret)
        # The purpose is signed with the key: a key for one purpose cannot be presented for another.
        signature = _sign_recoverable(self._app_key, f"{purpose}:{public_key.hex()}".encode())
        return SimulatedKey(secret, public_key, (signature, self._app_signature))


class KeyService:
    """Root of the application keys, derived from a seed.

    Args:
        seed: secret shared with the development PKI.

    Attributes:
        root_public_key: compressed SEC1 point of the root, 33 bytes; a policy can pin it.
    """

    def __init__(self, seed: bytes) -> None:
        self._root_key = derive_key(seed, b"confidential-trainer/development-key-service/root")
        self.root_public_key = _compressed_point(self._root_key)

    def app_keys(self, app_id: bytes) -> AppKeys:
        """Derives the keys of an application from root and app id (20 bytes), independent of the app's version."""
        app_key = derive_key(self._root_key, app_id, b"app-key")
        message = b"dstack-kms-issued:" + app_id + _compressed_point(app_key)
        return AppKeys(app_key, _sign_recoverable(self._root_key, message))


def derive_key(secret: bytes, *context: bytes) -> bytes:
    """Derives 32 bytes as dstack does: HKDF-SHA256 with salt `RATLS` and the context as info."""
    return HKDF(hashes.SHA256(), _KEY_BYTES, _SALT, b"".join(context)).derive(secret)


def own_app_keys(boot_seed: bytes) -> AppKeys:
    """Derives the app keys that a VM without a key service makes at boot, from random bytes; nobody signs them."""
    return AppKeys(derive_key(boot_seed, b"app-k256-key"), b"")


def service_identity(ca_public_key: ec.EllipticCurvePublicKey) -> str:
    """Returns the identity of a key service: the public key of its certificate authority, DER in hex."""
    return ca_public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def key_provider_info(name: str, identity: str) -> str:
    """Returns the JSON of the event `key-provider`, which names the key provider of the VM."""
    return json.dumps({"name": name, "id": identity}, separators=(",", ":"))


def _sign_recoverable(key: bytes, message: bytes) -> bytes:
    """Returns r ‖ s ‖ recovery id, 65 bytes: secp256k1 ECDSA over Keccak-256."""
    return coincurve.PrivateKey(key).sign_recoverable(keccak256(message), hasher=None)


def _compressed_point(key: bytes) -> bytes:
    return coincurve.PrivateKey(key).public_key.format(compressed=True)
