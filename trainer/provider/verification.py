"""The verify step: get evidence from a job and appraise it under a policy; and the job's deletion statement."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from trainer.attestation.claims.claims_checks import CLAIMS_VALIDITY, FRESHNESS
from trainer.attestation.evidence import Evidence, parse_evidence
from trainer.attestation.policy import CollateralDocument, Policy
from trainer.attestation.result.record import Record, load_record, save_record
from trainer.attestation.verifier import appraise
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, VerificationError
from trainer.provider.local_files import read_small_file, write_private_file
from trainer.provider.nonces import spend_nonce
from trainer.provider.own_files import LocalSecret, add_tag, check_tag
from trainer.provider.transport.carrier import Carrier
from trainer.provider.transport.collateral_download import fetch_collateral
from trainer.provider.transport.endorsement_download import fetch_gpu_endorsements
from trainer.receipt.attested_statement import verify_attested
from trainer.receipt.deletion import DeletionStatement, ExpectedDeletion, check_deletion
from trainer.receipt.privacy_statement import (
    PrivacyStatement,
    check_privacy_statement,
)

_RECORD_PURPOSE: Final = "result-record"

_AGE_CHECKS: Final = frozenset({CLAIMS_VALIDITY.code, FRESHNESS.code})
_AGED_HINT: Final = (
    "the evidence is out of date; a result still opens with --attestation where the job was verified, or with the "
    "secret of that machine ($XDG_STATE_HOME/confidential-trainer/secret)"
)


def appraise_job(
    client: Carrier,
    policy: Policy,
    *,
    cache: Path,
    nonces: Path | None = None,
    now: int | None = None,
) -> Record:
    """Asks a job for evidence over a fresh nonce and appraises it. The verdict of the record may be a failure.

    Args:
        client: carrier of the job, without a pinned TLS key: the appraisal decides whether the key is the job's.
        policy: what the provider demands.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.
        now: Unix time to appraise at; None reads the clock.

    Raises:
        UnavailableError: the job or the collateral service does not answer.
        VerificationError: the job's answer is not evidence.
    """
    return appraise_deployed_app(
        client, lambda _app_compose: policy, cache=cache, nonces=nonces, now=now
    )


def appraise_deployed_app(
    client: Carrier,
    make_policy: Callable[[str], Policy],
    *,
    cache: Path,
    nonces: Path | None = None,
    now: int | None = None,
) -> Record:
    """Asks a job for evidence over a fresh nonce and appraises it under a policy for the app that it shows.

    A policy that accepts whatever app-compose.json the job shows says of this text only that the VM measured it;
    whether it may run is for the provider to decide. If the record's verdict is a failure, not even that holds.

    Args:
        client: carrier of the job, as for `appraise_job`.
        make_policy: returns the policy for the exact text of an app-compose.json.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.
        now: Unix time to appraise at; None reads the clock.

    Raises:
        UnavailableError: the job or the collateral service does not answer.
        VerificationError: the job's answer is not evidence.
    """
    nonce = secrets.token_hex(32)
    evidence = parse_evidence(client.attestation(nonce))
    return appraise_evidence(
        evidence,
        make_policy(evidence.app_compose),
        nonce=nonce,
        cache=cache,
        nonces=nonces,
        now=now,
        peer_spki_sha256=client.peer_spki_sha256,
    )


def appraise_evidence(
    evidence: Evidence,
    policy: Policy,
    *,
    nonce: str,
    cache: Path,
    nonces: Path | None = None,
    now: int | None,
    peer_spki_sha256: str | None,
) -> Record:
    """Appraises evidence, with the collateral and GPU endorsements that the policy names.

    Args:
        evidence: evidence from a carrier or a file.
        policy: what the provider demands.
        nonce: the nonce that the provider chose, 64 hex digits; never one that is read from the evidence.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.
        now: Unix time to appraise at; None reads the clock. Only then the result is fresh.
        peer_spki_sha256: SHA-256 of the TLS key that answered, in hex; None if the evidence did not come over TLS.

    Raises:
        UnavailableError: the collateral service or an endorsement service does not answer.
        VerificationError: the quote cannot be parsed.
    """
    clock = int(time.time())
    appraised_at = clock if now is None else now
    if isinstance(policy.collateral, CollateralDocument):
        collateral = policy.collateral.document.encode()
    else:
        quote = bytes.fromhex(evidence.quote)
        collateral = fetch_collateral(
            quote, policy.collateral.url, cache_dir=cache, now=appraised_at
        )
    endorsements = fetch_gpu_endorsements(evidence.gpu.fresh, policy.gpu)
    evidence_sha256 = sha256_hex(evidence.canonical())
    result = appraise(
        evidence,
        collateral=collateral,
        policy=policy,
        nonce=nonce,
        now=appraised_at,
        peer_spki_sha256=peer_spki_sha256,
        fresh=now is None,
        # Spent at the real time, whatever `now` says: an appraisal as of an earlier time must not free a nonce.
        nonce_unused=None
        if nonces is None
        else spend_nonce(nonces, nonce, evidence_sha256, now=clock),
        endorsements=endorsements,
    )
    return Record(
        result, evidence=evidence, collateral=collateral, policy=policy, endorsements=endorsements
    )


def save_own_record(record: Record, path: Path, *, secret: LocalSecret) -> None:
    """Writes a record that `read_own_record` accepts on this machine, to a new file.

    Raises:
        UsageError: the file exists, or cannot be written.
    """
    write_private_file(path, add_tag(save_record(record), secret.key_for(_RECORD_PURPOSE)))


def read_own_record(path: Path, policy: Policy, *, secret: LocalSecret) -> Record:
    """Reads a record that this user's tool wrote here, and appraises it again under the policy of this command.

    The appraisal is as of the time of the first one, which the record's tag authenticates: a result is checked
    against it however long training took.

    Raises:
        UsageError: no such file.
        VerificationError: the record was not written here, is of another policy, not a pass, or was not fresh.
    """
    document = check_tag(
        read_small_file(path, "attestation result"), secret.key_for(_RECORD_PURPOSE)
    )
    if document is None:
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            f"{path} was not written by this tool for you on this machine, or was changed",
            expected="what `trainer verify -o` wrote here",
            found="something else",
            hint="verify the job yourself, or name a record that you made elsewhere with --import-record",
        )
    record = load_record(document, policy=policy, is_authentic=True)
    record.result.require_sealable(record.result.appraised_at)
    return record


def import_record(path: Path, policy: Policy, *, cache: Path, nonces: Path | None) -> Record:
    """Reads a record that this user made on another machine, and appraises it now under this command's policy.

    Whoever names a record here vouches for its nonce; nothing else in it is believed.

    Args:
        path: the record.
        policy: what the provider demands.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.

    Raises:
        UsageError: no such file.
        UnavailableError: the collateral service or an endorsement service does not answer.
        VerificationError: not a record, or its evidence does not satisfy the policy now.
    """
    recorded = load_record(read_small_file(path, "attestation result"))
    if recorded.result.nonce is None:
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            f"the record {path}",
            expected="one with your nonce",
            found="no nonce",
        )
    record = appraise_evidence(
        recorded.evidence,
        policy,
        nonce=recorded.result.nonce,
        cache=cache,
        nonces=nonces,
        now=None,
        peer_spki_sha256=recorded.result.peer_spki_sha256,
    )
    try:
        record.result.require_sealable(record.result.appraised_at)
    except VerificationError as error:
        if set() < {check.code for check in record.result.failed} <= _AGE_CHECKS:
            error.hint = _AGED_HINT
        raise
    return record


def verify_privacy_statement(
    document: bytes, record: Record, files: Mapping[str, str], *, restarted: Record | None = None
) -> PrivacyStatement:
    """Verifies the privacy statement of a job.

    Args:
        document: the content of `privacy.json`.
        record: the appraisal that the dataset was sealed on.
        files: maps each file of the result to its SHA-256.
        restarted: the appraisal of the job as it was started last, if it was.

    Raises:
        VerificationError: `receipt-invalid` or `receipt-mismatch`.
    """
    payload = verify_attested(document, "privacy", record, restarted=restarted)
    return check_privacy_statement(
        payload, job_spec_sha256=record.result.job_spec_sha256, files=files
    )


def verify_deletion_statement(
    document: bytes,
    record: Record,
    *,
    result_sha256: str,
    manifest_sha256: str | None,
    restarted: Record | None = None,
) -> DeletionStatement:
    """Verifies the deletion statement that an appraised job made at its end.

    Args:
        document: what the job gave out.
        record: the appraisal that the dataset was sealed on.
        result_sha256: SHA-256 of the sealed result in hex.
        manifest_sha256: SHA-256 of the dataset's manifest in hex; None if it is not known here.
        restarted: the appraisal of the job as it was started last, if it was.

    Raises:
        VerificationError: `receipt-invalid` or `receipt-mismatch`.
    """
    payload = verify_attested(document, "deletion", record, restarted=restarted)
    expected = ExpectedDeletion(
        job_spec_sha256=record.result.job_spec_sha256,
        received_at=int(time.time()),
        result_sha256=result_sha256,
        manifest_sha256=manifest_sha256,
    )
    return check_deletion(payload, expected)
