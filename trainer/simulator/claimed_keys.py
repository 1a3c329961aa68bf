"""The keys in the claims of an honest appraisal, and what shows that a simulated VM has them."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainer.attestation.dstack.key_chain import (
    POSSESSION_PURPOSE,
    RECIPIENT_PURPOSE,
    prove_possession,
)
from trainer.attestation.evidence import DatasetClaims, DerivedKeys, KeyChain
from trainer.encoding import sha256_hex
from trainer.simulator.agent import SimulatedVm
from trainer.tee.key_derivation import possession_path, recipient_path

JOB_SPEC_SHA256: Final = "ab" * 32


def spki(scalar: int) -> str:
    """Returns the public key of a P-256 scalar, DER SubjectPublicKeyInfo in hex."""
    key = ec.derive_private_key(scalar, ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


RECEIPT_KEY: Final = spki(7)
TLS_KEY: Final = spki(8)
PEER_SPKI_SHA256: Final = sha256_hex(bytes.fromhex(TLS_KEY))


def derived_keys(vm: SimulatedVm) -> DerivedKeys:
    """Returns the public keys of the recipient's secret and of the key that signs claims."""
    return DerivedKeys(
        recipient=vm.derive_key(recipient_path(JOB_SPEC_SHA256)).public_key.hex(),
        possession=vm.derive_key(possession_path(JOB_SPEC_SHA256)).public_key.hex(),
    )


def key_chain(vm: SimulatedVm) -> KeyChain | None:
    """Returns the key service's signatures over `derived_keys`; None where no key service signed the app's key."""
    recipient = vm.derive_key(recipient_path(JOB_SPEC_SHA256), RECIPIENT_PURPOSE).signature_chain
    possession = vm.derive_key(possession_path(JOB_SPEC_SHA256), POSSESSION_PURPOSE).signature_chain
    if not recipient[1]:
        return None
    return KeyChain(
        app=recipient[1].hex(), recipient=recipient[0].hex(), possession=possession[0].hex()
    )


def possession(vm: SimulatedVm, claims: DatasetClaims) -> str:
    """Returns the signature over `claims` by the possession key."""
    return prove_possession(vm.derive_key(possession_path(JOB_SPEC_SHA256)).secret, claims)
