"""dstack's signature chain: from a derived key to its app key to the key service's root.

Source: dstack `kms` and `guest-agent`. A signature is 65 bytes r‖s‖recovery id over a Keccak-256 digest, from
which the signer's public key is recovered; nothing in the chain names its signers.

A chain shows that the key service issued the app's key and that the app's key signed a derived key. It does not
show that this VM holds the derived key, as chains are public: for that the VM signs the nonce and its recipients
with it (`prove_possession`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coincurve import PublicKey
from Crypto.Hash import keccak
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from trainer.attestation.evidence import DatasetClaims, DerivedKey
from trainer.encoding import canonical_json

KMS_ISSUED: Final = b"dstack-kms-issued:"  # precedes the app id in what the root signs
CHAIN_LENGTH: Final = 2
POSSESSION_DOMAIN: Final = b"confidential-trainer/key-possession/v1\0"
_SCALAR_BYTES: Final = 32


@dataclass(frozen=True)
class KeyChain:
    """The signers of one derived key, as compressed SEC1 points in hex."""

    app_key: str
    root_key: str


def keccak256(data: bytes) -> bytes:
    """Returns the Keccak-256 of `data`: SHA-3's predecessor, which differs in the padding."""
    return keccak.new(digest_bits=256, data=data).digest()


def recover_key_chain(derived: DerivedKey, app_id: bytes) -> KeyChain:
    """Recovers app key and root key from the signatures over a derived key.

    Args:
        derived: public key, purpose and signature chain.
        app_id: 20 bytes, from the VM's measured `app-id` event.

    Raises:
        ValueError: not a chain of two signatures, or a signature from which no key can be recovered.
    """
    if len(derived.signature_chain) != CHAIN_LENGTH:
        raise ValueError(f"expected {CHAIN_LENGTH} signatures, got {len(derived.signature_chain)}")
    # The app key signs the derived key and its purpose; the key service's root signs the app key and the app id.
    by_app, by_root = (bytes.fromhex(signature) for signature in derived.signature_chain)
    app_key = recover(by_app, f"{derived.purpose}:{derived.public_key}".encode())
    return KeyChain(app_key.hex(), recover_root_key(by_root, app_id, app_key).hex())


def recover_root_key(signature: bytes, app_id: bytes, app_key: bytes) -> bytes:
    """Recovers the root key that signed `app_key` (33 bytes, compressed) as the key of app `app_id` (20 bytes).

    Raises:
        ValueError: no key can be recovered.
    """
    return recover(signature, KMS_ISSUED + app_id + app_key)


def recover(signature: bytes, message: bytes) -> bytes:
    """Recovers the signer's compressed public key (33 bytes) from `signature` (65 bytes) over `message`.

    Recovery gives some key for almost any signature: what it proves depends on comparing the key with a known one.

    Raises:
        ValueError: no key can be recovered.
    """
    return PublicKey.from_signature_and_message(signature, keccak256(message), hasher=None).format()


def prove_possession(secret: bytes, claims: DatasetClaims) -> str:
    """Signs the nonce and the recipients of claims with a derived key.

    ECDSA on secp256k1 with SHA-256 and deterministic nonces (RFC 6979), over the domain and, in JCS, an object of
    the claims' `nonce` and `recipients`.

    Args:
        secret: 32 bytes from the key service, derived under a path that nothing else uses.
        claims: the job's claims.

    Returns:
        r‖s, 64 bytes in hex.
    """
    key = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1())
    signature = key.sign(_possession_message(claims), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return b"".join(part.to_bytes(_SCALAR_BYTES, "big") for part in decode_dss_signature(signature)).hex()


def proves_possession(derived: DerivedKey, claims: DatasetClaims) -> bool:
    """Returns whether the holder of a derived key signed the nonce and recipients of these claims."""
    proof = bytes.fromhex(derived.possession or "")
    r, s = (int.from_bytes(part, "big") for part in (proof[:_SCALAR_BYTES], proof[_SCALAR_BYTES:]))
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), bytes.fromhex(derived.public_key))
        key.verify(encode_dss_signature(r, s), _possession_message(claims), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _possession_message(claims: DatasetClaims) -> bytes:
    return POSSESSION_DOMAIN + canonical_json(claims.model_dump(mode="json", include={"nonce", "recipients"}))
