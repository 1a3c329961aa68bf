"""Honest claims, their keys, and a policy that demands everything that can be demanded."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.attestation.gpu_bench import NONCE, NOW
from trainer.attestation.claims.binding import gpu_evidence_sha256
from trainer.attestation.dstack.key_chain import prove_possession
from trainer.attestation.evidence import DatasetClaims, DerivedKey, GpuEvidence, Recipients
from trainer.attestation.policy import (
    AppSection,
    CollateralUrl,
    FreshnessSection,
    GpuSection,
    KeyProviderDemand,
    OsMeasurements,
    OsSection,
    Policy,
    TcbSection,
    TrustRoot,
)
from trainer.encoding import sha256_hex
from trainer.simulator.agent import SimulatedVm, simulated_measurements
from trainer.tee.key_derivation import possession_path, recipient_path

SPEC = "ab" * 32
PEER = "0e" * 32


def _receipt_key() -> str:
    key = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def key_chain(vm: SimulatedVm, claims: DatasetClaims) -> tuple[DerivedKey, ...]:
    """The recipient's key, and the one that signs claims."""
    signed = prove_possession(vm.derive_key(possession_path(SPEC), "possession").secret, claims)
    possession = _proof(vm, possession_path(SPEC), "possession").model_copy(update={"possession": signed})
    return _proof(vm, recipient_path(SPEC), "sealing"), possession


def _proof(vm: SimulatedVm, path: str, purpose: str) -> DerivedKey:
    derived = vm.derive_key(path, purpose)
    return DerivedKey(
        path=path,
        purpose=purpose,
        public_key=derived.public_key.hex(),
        signature_chain=tuple(signature.hex() for signature in derived.signature_chain),
    )


def honest_claims(gpu: GpuEvidence) -> DatasetClaims:
    return DatasetClaims(
        version=1,
        purpose="dataset",
        nonce=NONCE,
        job_spec_sha256=SPEC,
        recipients=Recipients(derived="age1" + "q" * 58, instance="age1" + "p" * 58),
        receipt_key=_receipt_key(),
        tls_spki_sha256=PEER,
        gpu_evidence_sha256=gpu_evidence_sha256(gpu),
        sandbox={"seccomp": True, "landlock": True, "separate_users": False},
        software={"trainer": "0.1.0"},
        issued_at=NOW - 60,
        expires_at=NOW + 3600,
    )


def demanding_policy(vm: SimulatedVm) -> Policy:
    """Everything that can be demanded, demanded."""
    provider = json.loads(vm.key_provider)
    return Policy(
        version=1,
        trust_root=TrustRoot(pem=vm.pki.root_pem, sha256=sha256_hex(vm.pki.root_der)),
        collateral=CollateralUrl(url="https://pccs.invalid/"),
        tcb=TcbSection(
            accepted_statuses=("UpToDate",),
            grace_days=0,
            min_evaluation_number=19,
            refused_advisories=("INTEL-SA-00001",),
            mr_seam=("00" * 48,),
        ),
        app=AppSection(
            compose_sha256=(vm.compose_hash.hex(),),
            job_spec_sha256=(SPEC,),
            app_id=vm.app_id.hex(),
            key_provider=KeyProviderDemand(name=provider["name"], id=provider["id"]),
            kms_root_key=vm.key_service.root_public_key.hex(),
            recipient="instance",
        ),
        os=OsSection(measurements=(OsMeasurements(**vars(simulated_measurements())),)),
        gpu=GpuSection(
            required=True,
            boot="required",
            fresh="required",
            count=1,
            models=("GH100",),
            min_driver_version="550.90.07",
            min_vbios_version="96.00.9F.00.01",
            devtools="refused",
            reference_values="any",
            revocation="any",
        ),
        sandbox=("landlock", "seccomp"),
        freshness=FreshnessSection(max_age_seconds=600),
    )
