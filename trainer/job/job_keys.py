"""The job's private keys: recipients of the dataset, receipt key, end record. Only the supervisor has them.

Derived keys come from the key provider and the digest of the job spec: a restart derives the same keys, and an
altered job.yaml gets others. So does a later version of the app. What must be only this process's is random: the
instance identity, and the key that signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from trainer.attestation.dstack.key_chain import (
    POSSESSION_PURPOSE,
    RECIPIENT_PURPOSE,
    prove_possession,
)
from trainer.attestation.evidence import DatasetClaims, DerivedKeys, KeyChain, Recipients
from trainer.encoding import sha256_hex
from trainer.exchange.upload_authorization import UploadScope
from trainer.receipt.dsse import public_key_der
from trainer.sealing.age import Identity, generate_identity, identity_from_seed
from trainer.sealing.wiping import wiped
from trainer.tee import key_derivation as tee_keys

if TYPE_CHECKING:
    from trainer.tee.guest_agent import DerivedSecret, GuestAgent


@dataclass(frozen=True, repr=False)
class JobKeys:
    """Private keys of one job.

    Attributes:
        derived: opens datasets; derived by the key provider from the spec's digest, so a restart has it again.
        instance: opens datasets; random, and lost when this process ends.
        receipt: signs the receipt and the deletion statement (P-256); random, and lost when this process ends.
        recipient: the secret that `derived` was made of.
        possession: its secret signs the claims and serves no other purpose.
        end_record: the secret that the key of the end record is derived from.
        recipients: the public keys of `derived` and `instance`, as the claims contain them.
    """

    derived: Identity
    instance: Identity
    receipt: ec.EllipticCurvePrivateKey
    recipient: DerivedSecret
    possession: DerivedSecret
    end_record: DerivedSecret
    recipients: Recipients

    @property
    def identities(self) -> tuple[Identity, ...]:
        """The identities that a dataset can be sealed to."""
        return (self.derived, self.instance)

    @property
    def receipt_public_key(self) -> str:
        """DER SubjectPublicKeyInfo of the receipt key, in hex."""
        return public_key_der(self.receipt.public_key()).hex()

    def destroy_identities(self) -> None:
        """Overwrites the seeds of both identities with zeros, so that they can open no dataset."""
        for identity in self.identities:
            identity.destroy()

    def upload_scope(self, spec_sha256: str) -> UploadScope:
        """Returns what the authorisation of an upload to this start of the job has to name."""
        recipients = (self.recipients.derived, self.recipients.instance)
        return UploadScope(
            job_spec_sha256=spec_sha256,
            recipient_sha256=tuple(sha256_hex(recipient.encode()) for recipient in recipients),
        )

    @property
    def derived_keys(self) -> DerivedKeys:
        """Public halves of the derived keys, as the claims contain them."""
        return DerivedKeys(
            recipient=self.recipient.public_key, possession=self.possession.public_key
        )

    @property
    def key_chain(self) -> KeyChain | None:
        """The key service's signatures over the derived keys; None without a key service.

        They can be replayed, since they are in every evidence. `prove_possession` shows who has the keys.
        """
        if not self.recipient.app_signature:
            return None
        return KeyChain(
            app=self.recipient.app_signature,
            recipient=self.recipient.signature,
            possession=self.possession.signature,
        )

    def prove_possession(self, claims: DatasetClaims) -> str:
        """Returns a signature over `claims`; by a key with no other use, so that it can be taken for no other."""
        return prove_possession(self.possession.secret, claims)

    def end_record_key(self, spec_sha256: str, compose_sha256: str) -> bytearray:
        """Returns the key of the end record of this job spec in this app."""
        return tee_keys.end_record_key(
            self.end_record.secret, job_spec_sha256=spec_sha256, app_compose_sha256=compose_sha256
        )


def derive_keys(agent: GuestAgent, spec_sha256: str) -> JobKeys:
    """Makes the job's keys. Derived ones have the spec's digest in their path: an altered job.yaml gets others.

    Raises:
        UnavailableError: the guest agent gives no answer, or one that is not a key.
    """
    recipient = agent.derive_key(tee_keys.recipient_path(spec_sha256), RECIPIENT_PURPOSE)
    with wiped(tee_keys.recipient_seed(recipient.secret, spec_sha256)) as seed:
        derived = identity_from_seed(seed)  # copies it; the original is zeroed
    instance = generate_identity()
    return JobKeys(
        derived=derived,
        instance=instance,
        receipt=ec.generate_private_key(ec.SECP256R1()),
        recipient=recipient,
        possession=agent.derive_key(tee_keys.possession_path(spec_sha256), POSSESSION_PURPOSE),
        end_record=agent.derive_key(tee_keys.end_record_path(spec_sha256), "end-record"),
        recipients=Recipients(derived=str(derived.recipient()), instance=str(instance.recipient())),
    )
