"""dstack's signature chain: from a derived key to its app key to the key service's root.

Source: dstack `kms` and `guest-agent`. A signature is 65 bytes r‖s‖recovery id over a Keccak-256 digest, from
which the signer's public key is recovered; nothing in the chain names its signers.

A chain proves that the key service knows this app and that the app's key signed a key. It does not prove that this
VM holds that key: the quote and the measured code do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coincurve import PublicKey
from Crypto.Hash import keccak

from trainer.attestation.evidence import DerivedKey

KMS_ISSUED: Final = b"dstack-kms-issued:"
CHAIN_LENGTH: Final = 2


@dataclass(frozen=True)
class KeyChain:
    """The signers of one derived key, as compressed SEC1 points in hex."""

    app_key: str
    root_key: str


def keccak256(data: bytes) -> bytes:
    """Keccak-256: the padding from before SHA-3 was standardised."""
    return keccak.new(digest_bits=256, data=data).digest()


def recover_key_chain(derived: DerivedKey, app_id: bytes) -> KeyChain:
    """Recover app key and root key from the signatures over a derived key.

    Args:
        derived: public key, purpose and signature chain.
        app_id: 20 bytes, from the VM's measured `app-id` event.

    Raises:
        ValueError: not a chain of two signatures, or a signature from which no key can be recovered.
    """
    if len(derived.signature_chain) != CHAIN_LENGTH:
        raise ValueError(f"expected {CHAIN_LENGTH} signatures, got {len(derived.signature_chain)}")
    by_app, by_root = (bytes.fromhex(signature) for signature in derived.signature_chain)
    app_key = recover(by_app, f"{derived.purpose}:{derived.public_key}".encode())
    return KeyChain(app_key.hex(), recover_root_key(by_root, app_id, app_key).hex())


def recover_root_key(signature: bytes, app_id: bytes, app_key: bytes) -> bytes:
    """The key that vouched for `app_key` (33 bytes, compressed) as the key of app `app_id` (20 bytes).

    Raises:
        ValueError: no key can be recovered.
    """
    return recover(signature, KMS_ISSUED + app_id + app_key)


def recover(signature: bytes, message: bytes) -> bytes:
    """The compressed public key (33 bytes) that made `signature` (65 bytes) over the Keccak-256 of `message`.

    Raises:
        ValueError: no key can be recovered.
    """
    return PublicKey.from_signature_and_message(signature, keccak256(message), hasher=None).format()
