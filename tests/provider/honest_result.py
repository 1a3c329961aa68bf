"""A result as an honest job seals it, made without a job: tests change one thing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import JsonValue

from trainer.attestation.evidence import StatementClaims, StatementPurpose
from trainer.attestation.result.record import Record
from trainer.encoding import canonical_json, sha256_hex
from trainer.job.result_statements import tree_digests
from trainer.provider.grants import GrantRecord
from trainer.provider.opening import open_sealed_result
from trainer.provider.result_check import OpenedResult
from trainer.receipt.attested_envelope import AttestedEnvelope
from trainer.receipt.dsse import parse_envelope, public_key_der, sign_envelope
from trainer.receipt.model_signature import MODEL_SIGNATURE, sign_model
from trainer.receipt.public_provenance import PUBLIC_PROVENANCE, make_public_provenance
from trainer.receipt.statement import ReceiptOutcome, parse_statement
from trainer.receipt.statement_writer import StatementInputs, make_statement
from trainer.sealing.age import X25519Identity, generate_identity
from trainer.sealing.bundle import Grant, Manifest, ManifestFile
from trainer.sealing.sealed_result import seal_result
from trainer.simulator.appraisal_world import World, honest_world
from trainer.spec import JobSpec, parse_job_spec

SPEC = f"""\
version: 1
model:
  model_name_or_path: ./model
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
"""
IDENTITY, BACKUP = generate_identity(), generate_identity()
RECEIPT_KEY = ec.derive_private_key(7, ec.SECP256R1())  # the one in the simulator's claims
FILES = {
    "adapter/adapter_config.json": b"{}",
    "adapter/adapter_model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
}


MANIFEST = Manifest(
    version=1, salt="5a" * 32, files={"train.jsonl": ManifestFile(sha256="3" * 64, size=1)}
)
ROWS: dict[str, JsonValue] = {"train": 1, "eval": 0, "dropped": 0}


@dataclass(frozen=True)
class Sealing:
    """A result as an honest job seals it; tests change one thing."""

    world: World
    spec: JobSpec
    statement: Mapping[str, Any]
    files: Mapping[str, bytes]
    also_sealed_to: tuple[X25519Identity | Any, ...] = ()
    quoted_at: int | None = None
    key: ec.EllipticCurvePrivateKey = RECEIPT_KEY
    quoted_key: ec.EllipticCurvePrivateKey | None = None
    signature: bytes | None = None
    public: bytes | None = None
    public_purpose: StatementPurpose = "provenance"

    def seal(self, folder: Path) -> Path:
        tree = folder / "tree"
        for name, content in self.files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
        now = self.world.now
        inputs = StatementInputs(
            spec=self.spec,
            files=tree_digests(tree),
            dataset_files=grant_record(self.spec).salted_digests,
            dataset_manifest_sha256=grant_record(self.spec).manifest_sha256,
            recipients=grant_record(self.spec).grant.recipients,
            compose_sha256=self.world.vm.compose_hash.hex(),
            software={"torch": "2.13.0"},
            started_at=now,
            finished_at=now + 60,
            run="7c" * 16,
            outcome=ReceiptOutcome.SUCCEEDED,
            metrics={"rows": ROWS},
        )
        stated = replace(inputs, **self.statement)
        if stated.outcome is ReceiptOutcome.SUCCEEDED:
            signature = self.signature or sign_model(tree_digests(tree), self.key)
            public = self.public or make_public_provenance(parse_statement(make_statement(stated)))
            (tree / MODEL_SIGNATURE).write_bytes(signature)
            (tree / PUBLIC_PROVENANCE).write_bytes(
                self.attest(public, self.public_purpose).canonical()
            )
        statement = make_statement(
            replace(stated, files=self.statement.get("files", tree_digests(tree)))
        )
        attested = self.attest(statement, "receipt")
        (tree / "receipt.json").write_bytes(
            canonical_json(attested.envelope.model_dump(mode="json"))
        )
        (tree / "evidence.json").write_bytes(attested.evidence.canonical())
        recipients = [identity.recipient() for identity in (IDENTITY, BACKUP, *self.also_sealed_to)]
        seal_result(tree, folder / "result.tar.age", recipients)
        return folder / "result.tar.age"

    def attest(self, statement: bytes, purpose: StatementPurpose) -> AttestedEnvelope:
        claims = StatementClaims(
            version=1,
            purpose=purpose,
            job_spec_sha256=self.spec.sha256(),
            statement_sha256=sha256_hex(statement),
            receipt_key=public_key_der((self.quoted_key or self.key).public_key()).hex(),
            issued_at=self.quoted_at or self.statement.get("finished_at", self.world.now + 60),
        )
        return AttestedEnvelope(
            envelope=parse_envelope(sign_envelope(statement, self.key)),
            evidence=self.world.change(receipt=claims).receipt_evidence(),
        )

    def record(self) -> Record:
        world = self.world
        return Record(world.appraise(), world.evidence(), world.collateral, world.policy)


def grant_record(spec: JobSpec) -> GrantRecord:
    grant = Grant(
        version=1,
        job_spec_sha256=spec.sha256(),
        recipients=(str(IDENTITY.recipient()), str(BACKUP.recipient())),
        expires_at=2_000_000_000,
        secret="cd" * 32,
    )
    return GrantRecord(grant=grant, manifest=MANIFEST, rows=1, header="-")


@pytest.fixture
def sealing() -> Sealing:
    spec = parse_job_spec(SPEC.encode())
    world = honest_world().claiming(job_spec_sha256=spec.sha256())
    return Sealing(world.demanding("app", job_spec_sha256=(spec.sha256(),)), spec, {}, FILES)


def opened(sealing: Sealing, folder: Path) -> OpenedResult:
    source, record = sealing.seal(folder), sealing.record()
    return open_sealed_result(
        source, [IDENTITY], folder / "out", record=record, grant=grant_record(sealing.spec)
    )
