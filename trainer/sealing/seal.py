"""Sealing a dataset to a job that was verified, and opening it inside that job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from trainer.attestation.result.attestation_result import AttestationResult
from trainer.errors import ErrorCode, SealingError
from trainer.sealing.age import (
    Identity,
    ProgressCallback,
    decrypting_reader,
    encrypting_writer,
    parse_recipient,
)
from trainer.sealing.archive import ArchiveLimits
from trainer.sealing.atomic_files import SHARED_MODE, replace_atomically, translate_storage_errors
from trainer.sealing.bundle import Grant, Manifest, OpenedBundle, pack_bundle, unpack_bundle


def seal(
    files: Mapping[str, Path],
    to: AttestationResult,
    grant: Grant,
    target: Path,
    *,
    now: int,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Bundle files and encrypt them to the job that `to` vouches for: the only way to a sealed dataset.

    Args:
        files: name relative to `data/` → file.
        to: a verifier's verdict; only a pass that has not expired will do.
        grant: the provider's word; must be for the same job spec.
        target: the age file; replaced at once, untouched on any error.
        now: Unix time in seconds.
        progress: told of plaintext bytes done; they are a little more than the files' own.

    Raises:
        VerificationError: VERIFICATION_FAILED, ATTESTATION_EXPIRED.
        SealingError: GRANT_MISMATCH, GRANT_EXPIRED.
        UsageError: a file is missing, changes, or has a name that cannot be used.
        UnavailableError: STORAGE_FULL.
    """
    to.require_pass(now)
    require_valid_grant(grant, to.claims.job_spec_sha256, now)
    recipients = [parse_recipient(to.recipient)]
    with (
        replace_atomically(target, SHARED_MODE) as sealed,
        encrypting_writer(sealed, recipients, progress=progress) as bundle,
    ):
        return pack_bundle(bundle, grant, files)


def open_bundle(
    source: Path,
    identities: Sequence[Identity],
    job_spec_sha256: str,
    workspace: Path,
    *,
    now: int,
    limits: ArchiveLimits,
    progress: ProgressCallback | None = None,
) -> OpenedBundle:
    """Open a sealed dataset into `workspace/data/`; returns only when the last chunk was authenticated.

    Plaintext goes from the cipher straight into the files, so that the workspace holds it once. On any error,
    a file cut short among them, all of it is removed again.

    Args:
        source: the age file, from a stranger.
        identities: the job's keys.
        job_spec_sha256: digest of the job's own spec.
        workspace: a directory in memory that only we write to.
        now: Unix time in seconds.
        limits: bounds on files and bytes.
        progress: told of plaintext bytes done.

    Raises:
        SealingError: what `age.decrypt` raises; BUNDLE_INVALID, GRANT_MISMATCH, GRANT_EXPIRED.
        UsageError: FILE_NOT_FOUND, OUTPUT_EXISTS.
        UnavailableError: STORAGE_FULL.
    """
    admit = partial(require_valid_grant, job_spec_sha256=job_spec_sha256, now=now)
    with (
        translate_storage_errors(),
        source.open("rb", buffering=0) as sealed,
        decrypting_reader(sealed, identities, progress=progress) as bundle,
    ):
        # The archive ends where the stream does: its end is read only once the last chunk authenticated.
        return unpack_bundle(bundle, workspace, limits=limits, admit=admit)


def require_valid_grant(grant: Grant, job_spec_sha256: str, now: int) -> None:
    """Demand that a grant be for this job spec and still hold.

    Raises:
        SealingError: GRANT_MISMATCH, GRANT_EXPIRED.
    """
    if grant.job_spec_sha256 != job_spec_sha256:
        raise SealingError(
            ErrorCode.GRANT_MISMATCH,
            "the grant is for another job spec",
            expected=job_spec_sha256,
            found=grant.job_spec_sha256,
        )
    if now >= grant.expires_at:
        raise SealingError(
            ErrorCode.GRANT_EXPIRED,
            "the grant has expired",
            expected=f"a time before {grant.expires_at}",
            found=now,
        )
