"""Sealing a dataset to a job that was verified, and opening it inside that job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from trainer.atomic_files import (
    SHARED_MODE,
    open_regular_file,
    replace_atomically,
    translate_storage_errors,
)
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.durations import utc
from trainer.errors import ErrorCode, SealingError
from trainer.provider_keys import ProviderKey
from trainer.sealing.age import (
    Identity,
    ProgressCallback,
    decrypting_reader,
    encrypting_writer,
    parse_recipient,
)
from trainer.sealing.archive import ArchiveLimits, bundle_invalid
from trainer.sealing.bundle import Grant, Manifest, OpenedBundle, pack_bundle, unpack_bundle
from trainer.sealing.bundle_signature import (
    BundleSignature,
    CheckSignature,
    require_signed,
    sign_bundle,
)
from trainer.sealing.regrant import Regrant


def seal(
    files: Mapping[str, Path],
    to: AttestationResult,
    grant: Grant,
    target: Path,
    *,
    now: int,
    key: ProviderKey | None = None,
    file_key: bytes | None = None,
    progress: ProgressCallback | None = None,
) -> Manifest:
    """Bundles data files and encrypts them to the recipient that an attestation result names.

    This is the only function that makes a sealed dataset. It takes an `AttestationResult` and not a recipient, so
    that data cannot be encrypted to a key whose job was not appraised.

    Args:
        files: maps each name, relative to `data/`, to a file.
        to: the result of an appraisal; must be a fresh pass that has not expired.
        grant: what the provider allows and demands; must name the job spec that was attested.
        target: the age file; replaced atomically, and left as it was on any error.
        now: Unix time in seconds.
        key: the provider's, which signs the bundle; None leaves it unsigned.
        file_key: from `age.new_file_key`, for a provider who wraps it to its own identity too; None makes one.
        progress: called with the number of plaintext bytes encrypted so far, archive headers included.

    Raises:
        VerificationError: VERIFICATION_FAILED, ATTESTATION_EXPIRED.
        SealingError: GRANT_MISMATCH, GRANT_EXPIRED.
        UsageError: a file is missing, changes, or has a name that cannot be used.
        UnavailableError: STORAGE_FULL.
    """
    to.require_sealable(now)
    require_valid_grant(grant, to.claims.job_spec_sha256, now)
    # The recipient comes from the attested claims alone; no argument or configuration can add another.
    recipients = [parse_recipient(to.recipient)]
    with (
        replace_atomically(target, SHARED_MODE) as sealed,
        encrypting_writer(sealed, recipients, file_key=file_key, progress=progress) as bundle,
    ):
        return pack_bundle(
            bundle, grant, files, partial(sign_bundle, key, to.recipient) if key else None
        )


def open_bundle(
    source: Path,
    identities: Sequence[Identity],
    job_spec_sha256: str,
    workspace: Path,
    *,
    now: int,
    limits: ArchiveLimits,
    providers: Sequence[str] = (),
    check_grant: Callable[[Grant], None] = lambda _grant: None,
    regrant: Regrant | None = None,
    instance: str | None = None,
    progress: ProgressCallback | None = None,
) -> OpenedBundle:
    """Opens a sealed dataset into `workspace/data/`; returns only after the last chunk has authenticated.

    Plaintext is written to the files as it is decrypted, so that memory holds it once. On any error, including a
    file that was cut short, all of it is removed again.

    Args:
        source: the age file; anyone who reaches the job may have uploaded it.
        identities: the job's keys.
        job_spec_sha256: digest of the job's own spec.
        workspace: a directory in a tmpfs that only this process writes to.
        now: Unix time in seconds.
        limits: limits on files and bytes.
        providers: public keys of those whose bundles are accepted; empty: anyone's.
        check_grant: called with a grant for this job before any data is written; raises to refuse the bundle.
        regrant: counts in place of the file's header, the grant's expiry and the bundle's signature.
        instance: the recipient of this start that no other start has; needed for a re-grant.
        progress: called with the number of plaintext bytes decrypted so far.

    Raises:
        SealingError: as `age.decrypt`; BUNDLE_INVALID, GRANT_MISMATCH, GRANT_EXPIRED; as `require_signed`;
            REGRANT_INVALID.
        UsageError: FILE_NOT_FOUND, OUTPUT_EXISTS.
        UnavailableError: STORAGE_FULL.
    """
    recipients = [str(identity.recipient()) for identity in identities]
    check_signature: CheckSignature = partial(
        require_signed, recipients=recipients, providers=providers
    )
    if regrant is not None:
        regrant.require_addressed(
            job_spec_sha256=job_spec_sha256, instance=instance, recipients=recipients, now=now
        )
        check_signature = _signature_check(regrant, providers)

    def check(grant: Grant) -> None:
        if regrant is not None:
            regrant.require_authentic(grant)
        require_valid_grant(
            grant, job_spec_sha256, now, expires_at=regrant.expires_at if regrant else None
        )
        check_grant(grant)

    with (
        translate_storage_errors(),
        _open_upload(source) as sealed,
        decrypting_reader(
            sealed,
            identities,
            header=regrant.header.encode() if regrant else None,
            progress=progress,
        ) as bundle,
    ):
        # `unpack_bundle` reads to the end of the stream, which is reached only after the last chunk authenticated.
        return unpack_bundle(
            bundle, workspace, limits=limits, check_grant=check, check_signature=check_signature
        )


def _signature_check(regrant: Regrant, providers: Sequence[str]) -> CheckSignature:
    """Returns what judges a re-granted bundle: its own signature names the recipient of an earlier start."""

    def check(_: BundleSignature | None, __: str, manifest_sha256: str) -> str | None:
        return regrant.require_manifest(manifest_sha256, providers)

    return check


def _open_upload(source: Path) -> BinaryIO:
    try:
        return open_regular_file(source)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise bundle_invalid("a sealed dataset", "a regular file", error.strerror) from error


def require_valid_grant(
    grant: Grant, job_spec_sha256: str, now: int, *, expires_at: int | None = None
) -> None:
    """Requires that a grant names this job spec and has not expired; `expires_at` counts in place of its own.

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
    if now >= (end := expires_at or grant.expires_at):
        raise SealingError(
            ErrorCode.GRANT_EXPIRED,
            "the grant has expired",
            expected=f"a time before {utc(end)}",
            found=utc(now),
        )
