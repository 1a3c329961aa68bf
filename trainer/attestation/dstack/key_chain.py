"""dstack's signature chain: from a derived key to its app key to the key service's root.

Source: dstack `kms` and `guest-agent`. A signature is 65 bytes r‖s‖recovery id over a Keccak-256 digest, from
which the signer's public key is recovered; nothing in the chain names its signers.

A chain shows that the key service issued the app's key and that the app's key signed the derived keys, whose
public halves are in the claims. It does not show that this VM holds a derived key, as chains are public: for that
the VM signs the claims with one (`prove_possession`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coincurve import PublicKey
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from trainer.attestation.claims.binding import report_data
from trainer.attestation.dstack.keccak import keccak256
from trainer.attestation.evidence import DatasetClaims, DerivedKeys, KeyChain

KMS_ISSUED: Final = b"dstack-kms-issued:"  # precedes the app id in what the root signs
RECIPIENT_PURPOSE: Final = "sealing"
POSSESSION_PURPOSE: Final = "possession"
POSSESSION_DOMAIN: Final = b"confidential-trainer/key-possession/v1\0"
_SCALAR_BYTES: Final = 32


@dataclass(frozen=True)
class ChainSigners:
    """The keys that signed a chain, as compressed SEC1 points in hex.

    Attributes:
        app_keys: of each derived key the app key that signed it.
        root_key: the key service's root, if the first of `app_keys` is the app's.
    """

    app_keys: tuple[str, str]
    root_key: str


def recover_signers(chain: KeyChain, derived: DerivedKeys, app_id: bytes) -> ChainSigners:
    """Recovers the signers of a chain over the keys that the claims name.

    Args:
        chain: the signatures.
        derived: the public keys in the claims.
        app_id: 20 bytes, from the VM's measured `app-id` event.

    Raises:
        ValueError: a signature from which no key can be recovered.
    """
    # The app key signs each derived key and its purpose; the key service's root signs the app key and the app id.
    signed = (
        (chain.recipient, RECIPIENT_PURPOSE, derived.recipient),
        (chain.possession, POSSESSION_PURPOSE, derived.possession),
    )
    first, second = (
        recover(bytes.fromhex(signature), f"{purpose}:{public_key}".encode())
        for signature, purpose, public_key in signed
    )
    root_key = recover_root_key(bytes.fromhex(chain.app), app_id, first)
    return ChainSigners((first.hex(), second.hex()), root_key.hex())


def issuer(chain: KeyChain | None, derived: DerivedKeys, app_id: bytes) -> str | None:
    """Returns the root key of the key service that issued the derived keys, in hex; None where none did.

    Whether the VM has these keys is not judged here, nor whether the root is that of a service to be trusted.
    """
    if chain is None:
        return None
    try:
        signers = recover_signers(chain, derived, app_id)
    except ValueError:
        return None
    return signers.root_key if len(set(signers.app_keys)) == 1 else None


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
    """Signs claims, as a quote does, with a derived key.

    ECDSA on secp256k1 with SHA-256 and deterministic nonces (RFC 6979), over the domain and the claims'
    `report_data`.

    Args:
        secret: 32 bytes from the key service, derived under a path that nothing else uses.
        claims: the job's claims.

    Returns:
        r‖s, 64 bytes in hex.
    """
    key = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1())
    signature = key.sign(
        _possession_message(claims), ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    )
    return b"".join(
        part.to_bytes(_SCALAR_BYTES, "big") for part in decode_dss_signature(signature)
    ).hex()


def proves_possession(possession: str, claims: DatasetClaims) -> bool:
    """Returns whether the possession key that the claims name signed these claims; `possession` is r‖s in hex."""
    proof, point = bytes.fromhex(possession), bytes.fromhex(claims.derived_keys.possession)
    r, s = (int.from_bytes(part, "big") for part in (proof[:_SCALAR_BYTES], proof[_SCALAR_BYTES:]))
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), point)
        key.verify(
            encode_dss_signature(r, s), _possession_message(claims), ec.ECDSA(hashes.SHA256())
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def _possession_message(claims: DatasetClaims) -> bytes:
    # All of the claims, by the digest that the quote covers: a signature over a part of them would serve any VM
    # that shows the same part.
    return POSSESSION_DOMAIN + report_data(claims)
