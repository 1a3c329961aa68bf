"""The job's keys: who the dataset is sealed to, and what signs the receipt. They live in this process only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from trainer.attestation.dstack.key_chain import prove_possession
from trainer.attestation.evidence import DatasetClaims, DerivedKey, Recipients
from trainer.receipt.dsse import public_key_der
from trainer.sealing.age import Identity, generate_identity, identity_from_seed
from trainer.sealing.sealed_checkpoint import CheckpointBinding, CheckpointKeys
from trainer.sealing.wiping import wiped
from trainer.tee import key_derivation as tee_keys

if TYPE_CHECKING:
    from trainer.tee.guest_agent import DerivedSecret, GuestAgent


@dataclass(frozen=True, repr=False)
class JobKeys:
    """Private keys of one job.

    `derived` comes from the key service and the job spec's digest; `instance` is random and dies with this
    process; `receipt` signs the statement; `possession` signs recipients, and nothing is made of its secret;
    `checkpoint` is one of the two secrets behind the keys of checkpoints.
    """

    derived: Identity
    instance: Identity
    receipt: ec.EllipticCurvePrivateKey
    proofs: tuple[DerivedKey, ...]
    possession: DerivedSecret
    checkpoint: DerivedSecret

    @property
    def identities(self) -> tuple[Identity, ...]:
        """What a sealed dataset may be addressed to."""
        return (self.derived, self.instance)

    @property
    def recipients(self) -> Recipients:
        """The public halves, as the claims state them."""
        return Recipients(derived=str(self.derived.recipient()), instance=str(self.instance.recipient()))

    @property
    def receipt_public_key(self) -> str:
        """DER SubjectPublicKeyInfo of the receipt key, in hex."""
        return public_key_der(self.receipt.public_key()).hex()

    def destroy_identities(self) -> None:
        """Make the keys that datasets are sealed to useless: what is left of their seeds are zeros."""
        for identity in self.identities:
            identity.destroy()

    def key_chain(self, claims: DatasetClaims) -> tuple[DerivedKey, ...]:
        """Proofs that the keys are the key service's, and that the VM that makes `claims` holds such keys."""
        signed = prove_possession(self.possession.secret, claims)
        return (*self.proofs, self.possession.proof.model_copy(update={"possession": signed}))

    def checkpoint_keys(self, token: str, binding: CheckpointBinding) -> CheckpointKeys:
        """Keys of the checkpoints of this job with one dataset; `token` is the grant's, the other secret."""
        bound = binding.model_dump(mode="json")
        with wiped(tee_keys.checkpoint_material(self.checkpoint.secret, token, **bound)) as material:
            return CheckpointKeys.from_material(material)  # has copies of its own


def derive_keys(agent: GuestAgent, spec_sha256: str) -> JobKeys:
    """Derive the job's keys; their paths hold the spec's digest, so another job.yaml has other keys.

    Raises:
        UnavailableError: the guest agent does not answer, or answers what is not a key.
    """
    recipient = agent.derive_key(tee_keys.recipient_path(spec_sha256), "sealing")
    receipt = agent.derive_key(tee_keys.receipt_path(spec_sha256), "signing")
    with wiped(tee_keys.recipient_seed(recipient.secret, spec_sha256)) as seed:
        derived = identity_from_seed(seed)  # has a copy of its own
    return JobKeys(
        derived=derived,
        instance=generate_identity(),
        receipt=tee_keys.receipt_key(receipt.secret, spec_sha256),
        proofs=(recipient.proof, receipt.proof),
        possession=agent.derive_key(tee_keys.possession_path(spec_sha256), "possession"),
        checkpoint=agent.derive_key(tee_keys.checkpoint_path(spec_sha256), "checkpoint"),
    )
