"""Signs what a result says of itself: receipt, public provenance, privacy statement, model signature.

Each statement has a quote of its own, over its digest and the key that signed it.
"""

from __future__ import annotations

import io
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from trainer.attestation.evidence import StatementClaims, StatementEvidence, StatementPurpose
from trainer.encoding import file_sha256, rounded_up, sha256_hex
from trainer.errors import ErrorCode, JobError, TrainerError
from trainer.job.end_record import PrivacySpent
from trainer.job.job_keys import JobKeys
from trainer.receipt.attested_envelope import AttestedEnvelope
from trainer.receipt.dsse import parse_envelope, sign_envelope
from trainer.receipt.model_signature import MODEL_SIGNATURE, sign_model
from trainer.receipt.privacy_statement import (
    PRIVACY_STATEMENT,
    PrivacyPredicate,
    make_privacy_statement,
)
from trainer.receipt.public_provenance import PUBLIC_PROVENANCE, make_public_provenance
from trainer.receipt.statement import ReceiptOutcome, parse_statement
from trainer.receipt.statement_writer import StatementInputs, make_statement
from trainer.sealing.age import encrypt, parse_recipient
from trainer.sealing.bundle import Grant
from trainer.sealing.pool import Pool, ReceivedDataset
from trainer.spec import JobSpec
from trainer.spec.pool_names import pool_folder, pool_name
from trainer.tee.quoted_evidence import collect_statement

if TYPE_CHECKING:
    from trainer.tee.guest_agent import GuestAgent


@dataclass(frozen=True)
class ReceiptSigner:
    """Signs statements: the job's keys, the guest agent that issues quotes, and facts about the software."""

    agent: GuestAgent
    keys: JobKeys
    spec: JobSpec
    compose_sha256: str
    software: Mapping[str, str]

    def attest(
        self, statement: bytes, purpose: StatementPurpose, *, issued_at: int
    ) -> tuple[bytes, StatementEvidence]:
        """Returns the envelope of a signed statement, and the quote over the statement and the key that signed it.

        Args:
            statement: the payload.
            purpose: what kind of statement it is.
            issued_at: Unix seconds.

        Raises:
            UnavailableError: the guest agent issues no quote.
        """
        claims = StatementClaims(
            version=1,
            purpose=purpose,
            job_spec_sha256=self.spec.sha256(),
            statement_sha256=sha256_hex(statement),
            receipt_key=self.keys.receipt_public_key,
            issued_at=issued_at,
        )
        return sign_envelope(statement, self.keys.receipt), collect_statement(self.agent, claims)


@dataclass(frozen=True)
class Addressees:
    """Whom a result is for.

    Attributes:
        grants: of those who acknowledge it.
        recipients: age recipients who can open it.
    """

    grants: tuple[Grant, ...]
    recipients: tuple[str, ...]


@dataclass(frozen=True)
class JobOutcome:
    """How the job ended.

    Attributes:
        started_at: Unix time in seconds at which training started.
        finished_at: Unix time in seconds at which training ended.
        metrics: the worker's summary.
        failure: the error that ended the job; None on success.
        checkpoint: step of the newest sealed checkpoint, if there is one.
        privacy: what private results over this dataset have spent, this one included; None without any.
        refused: whether the failure is the dataset's, before the first optimizer step: another one may be sent.
        at_fault: number of the provider of a joint job whose dataset the failure is about; None: of no single one.
        run: random id of this run, 32 hex digits: two results of one job spec and dataset differ in it.
    """

    started_at: int
    finished_at: int
    metrics: Mapping[str, JsonValue]
    failure: TrainerError | None
    checkpoint: int | None = None
    privacy: PrivacySpent | None = None
    refused: bool = False
    at_fault: int | None = None
    run: str = field(default_factory=lambda: secrets.token_hex(16))

    def addressees(self, dataset: ReceivedDataset) -> Addressees:
        """Returns whom the result, or failure report, is for.

        All providers, unless the failure is about the dataset of one of them, of which the others learn nothing.
        """
        if self.at_fault is None:
            return Addressees(dataset.grants, dataset.grants[0].recipients)
        grant = dataset.grants[self.at_fault - 1]
        return Addressees((grant,), grant.joint.own_recipients if grant.joint else grant.recipients)


@dataclass(frozen=True)
class ResultTree:
    """The directory that is sealed, with the digest of every file in it: weights are hashed once.

    Args:
        folder: the directory.
        files: maps each file to its SHA-256.
    """

    folder: Path
    files: dict[str, str]

    def add(self, name: str, content: bytes) -> None:
        """Writes a new file."""
        (self.folder / name).write_bytes(content)
        self.files[name] = sha256_hex(content)


def add_statements(
    tree: Path, signer: ReceiptSigner, bundle: ReceivedDataset, outcome: JobOutcome
) -> None:
    """Adds everything that is signed to a result (or failure report) that is complete but for it.

    The order follows from what each step covers: the receipt lists the other signed files, its claims hold its
    digest, the quote covers the claims.

    Raises:
        JobError: the worker left what is neither a file nor a directory.
        UnavailableError: the guest agent issues no quote.
    """
    result = ResultTree(tree, tree_digests(tree))
    if outcome.failure is None:
        _add_privacy_statement(result, signer, outcome)
        result.add(MODEL_SIGNATURE, sign_model(result.files, signer.keys.receipt))
        _add_public_provenance(result, signer, bundle, outcome)
        if isinstance(bundle, Pool):
            _add_own_receipts(result, signer, bundle, outcome)
    statement = make_statement(_statement_inputs(signer, bundle, outcome, result.files))
    envelope, evidence = signer.attest(statement, "receipt", issued_at=outcome.finished_at)
    result.add("receipt.json", envelope)
    # The key that signed is this start's own. The quote says so, to a provider who appraised an earlier start too.
    result.add("evidence.json", evidence.canonical())


def _add_privacy_statement(result: ResultTree, signer: ReceiptSigner, outcome: JobOutcome) -> None:
    """Writes `privacy.json` beside private weights: what of the receipt may travel with them."""
    if not signer.spec.privacy.differential or outcome.privacy is None:
        return
    predicate = PrivacyPredicate(
        jobSpecSha256=signer.spec.sha256(),
        run=outcome.run,
        runs=outcome.privacy.runs,
        epsilon=rounded_up(outcome.privacy.epsilon),
        delta=outcome.privacy.delta,
        accountant=signer.spec.privacy.accountant,
    )
    statement = make_privacy_statement(predicate, result.files)
    result.add(PRIVACY_STATEMENT, _attested(statement, "privacy", signer, outcome))


def _add_public_provenance(
    result: ResultTree, signer: ReceiptSigner, bundle: ReceivedDataset, outcome: JobOutcome
) -> None:
    """Writes `provenance.json`: what of the receipt may be shown to everyone."""
    receipt = parse_statement(
        make_statement(_statement_inputs(signer, bundle, outcome, result.files))
    )
    result.add(
        PUBLIC_PROVENANCE, _attested(make_public_provenance(receipt), "provenance", signer, outcome)
    )


def _add_own_receipts(
    result: ResultTree, signer: ReceiptSigner, pool: Pool, outcome: JobOutcome
) -> None:
    """Writes a receipt for each provider of a joint job, sealed to it alone: it names the files of its dataset."""
    common = _statement_inputs(signer, pool, outcome, dict(result.files))
    (result.folder / "receipts").mkdir(mode=0o700)
    for number, bundle in enumerate(pool.bundles, start=1):
        own = {
            pool_name(number, name): digest
            for name, digest in bundle.manifest.salted_digests().items()
        }
        listed = {**common.dataset_files, **own}
        statement = make_statement(replace(common, dataset_files=listed))
        sealed = io.BytesIO()
        recipients = (
            [parse_recipient(text) for text in bundle.grant.joint.own_recipients]
            if bundle.grant.joint
            else []
        )
        encrypt(io.BytesIO(_attested(statement, "receipt", signer, outcome)), sealed, recipients)
        result.add(f"receipts/{pool_folder(number)}.age", sealed.getvalue())


def _attested(
    statement: bytes, purpose: StatementPurpose, signer: ReceiptSigner, outcome: JobOutcome
) -> bytes:
    envelope, evidence = signer.attest(statement, purpose, issued_at=outcome.finished_at)
    return AttestedEnvelope(envelope=parse_envelope(envelope), evidence=evidence).canonical()


def tree_digests(tree: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `tree`, by its relative POSIX name.

    Raises:
        JobError: an entry is neither a file nor a directory. A link, which the worker could create, would have the
            supervisor seal a file from outside the tree.
    """
    digests: dict[str, str] = {}
    for path in sorted(tree.rglob("*")):
        mode = path.lstat().st_mode  # of a link itself
        if stat.S_ISREG(mode):
            digests[path.relative_to(tree).as_posix()] = file_sha256(path)
        elif not stat.S_ISDIR(mode):
            raise JobError(
                ErrorCode.JOB_FAILED, "the worker left what is neither a file nor a directory"
            )
    return digests


def _statement_inputs(
    signer: ReceiptSigner, bundle: ReceivedDataset, outcome: JobOutcome, files: Mapping[str, str]
) -> StatementInputs:
    """Returns what the statement is made from; of the dataset, names and salted digests.

    Of the datasets of a joint job, the digests of their manifests.
    """
    return StatementInputs(
        spec=signer.spec,
        files=files,
        dataset_files=bundle.manifest.salted_digests(),
        dataset_manifest_sha256=bundle.manifest.sha256(),
        recipients=outcome.addressees(bundle).recipients,
        compose_sha256=signer.compose_sha256,
        software=signer.software,
        started_at=outcome.started_at,
        finished_at=outcome.finished_at,
        run=outcome.run,
        outcome=ReceiptOutcome.SUCCEEDED if outcome.failure is None else ReceiptOutcome.FAILED,
        metrics=outcome.metrics,
        error=None if outcome.failure is None else outcome.failure.code,
    )
