"""The dataset bundle: the archive that a provider sends to a job. `seal.py` encrypts it.

    grant.json      the provider's permissions and demands: for which job, result recipients, expiry
    data/NAME …     the data files, in the order of their names as UTF-8 bytes
    manifest.json   SHA-256 and size of each data file, and a secret salt
    signature.json  optional: the provider's signature over grant, manifest and recipient

The grant is first, so that a job refuses a bundle for another job before it writes any data. The manifest is
after the data, so that files are hashed while they are written and read once; what it is signed with is last.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final

from pydantic import AfterValidator, Field

from trainer.atomic_files import translate_storage_errors
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.models import One, Secret, Sha256Hex, Strict, UnixTime
from trainer.sealing.age import Recipient, parse_recipient
from trainer.sealing.archive import (
    MAX_NAME_BYTES,
    ArchiveLimits,
    ArchiveMember,
    ArchiveReader,
    ArchiveWriter,
    bundle_invalid,
    require_member_name,
)
from trainer.sealing.archive_documents import read_document
from trainer.sealing.bundle_signature import (
    MAX_SIGNATURE_BYTES,
    SIGNATURE_NAME,
    BundleSignature,
    CheckSignature,
    Sign,
)
from trainer.sealing.extraction import extract_member, fresh_directory
from trainer.sealing.grant_secrets import manifest_salt
from trainer.sealing.joint_terms import JointTerms, RecipientTexts

GRANT_NAME: Final = "grant.json"
MANIFEST_NAME: Final = "manifest.json"
DATA_PREFIX: Final = "data/"
MAX_GRANT_BYTES: Final = 1 << 18
MAX_MANIFEST_BYTES: Final = 1 << 20
SPLIT_DOMAIN: Final = b"confidential-trainer/split/v1"

BundleLimits = ArchiveLimits
"""Limits of a bundle; `grant.json` and `manifest.json` count as files."""


class GrantPermissions(Strict):
    """What the provider permits the job beyond training.

    Args:
        private_progress: losses and other metrics may be streamed, encrypted, to who shows the events token.
    """

    private_progress: bool = True


class PrivacyDemand(Strict):
    """Demand that weights are differentially private, within this (ε, δ) budget for each row."""

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_delta: Annotated[float, Field(gt=0, lt=1)]


class GrantDemands(Strict):
    """What the provider demands beyond the job spec; a job that does not meet it returns a failure report only."""

    privacy: PrivacyDemand


class Grant(Strict):
    """The provider's permissions and demands for one job.

    A job takes a grant only from inside a sealed bundle. Its recipients are thus out of reach for the operator,
    whose configuration, environment and HTTP headers name none.
    """

    version: One
    job_spec_sha256: Sha256Hex
    recipients: RecipientTexts
    """Who may open the result. The grants of a joint job have the same ones."""
    expires_at: UnixTime
    secret: Secret
    """32 random bytes in hex, which nobody is shown: `grant_secrets` derives a value for each use from it."""
    allow: GrantPermissions = GrantPermissions()
    require: GrantDemands | None = None
    joint: JointTerms | None = None
    """In a grant for a joint job, and in no other."""

    def result_recipients(self) -> tuple[Recipient, ...]:
        """Returns the recipients in the form that `age.encrypt` takes."""
        return tuple(parse_recipient(text) for text in self.recipients)

    def canonical(self) -> bytes:
        """Returns the content of `grant.json`: RFC 8785 JSON, without demands that are not made."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    def sha256(self) -> str:
        """Returns the SHA-256 of `canonical()` in hex, by which a signature names the grant."""
        return sha256_hex(self.canonical())


def _require_data_name(name: str) -> str:
    require_member_name(DATA_PREFIX + name)
    return name


DataName = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME_BYTES), AfterValidator(_require_data_name)
]
"""Name of a data file, relative to `data/`: at most 95 bytes of UTF-8."""


class ManifestFile(Strict):
    """Digest and size of one data file."""

    sha256: Sha256Hex
    size: Annotated[int, Field(ge=0, le=2**53 - 1)]


class Manifest(Strict):
    """`manifest.json`: digest and size of each data file, by its name relative to `data/`.

    Receipts, deletion statements and model cards name the dataset by the digest of its manifest, and travel
    further than the dataset. Without the salt, whoever knows all rows but one could try candidates for the last.
    """

    version: One
    salt: Secret
    """32 bytes in hex that nobody outside provider and job knows; see `grant_secrets.manifest_salt`."""
    files: Annotated[dict[DataName, ManifestFile], Field(min_length=1)]

    def canonical(self) -> bytes:
        """Returns the content of `manifest.json`: RFC 8785 JSON."""
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """Returns the SHA-256 of `manifest.json` in hex, by which receipts name the dataset."""
        return sha256_hex(self.canonical())

    def salted_digests(self) -> dict[str, str]:
        """Maps each file to SHA-256(salt ‖ SHA-256 of the file), in hex, by which receipts name it."""
        salt = bytes.fromhex(self.salt)
        return {
            name: sha256_hex(salt + bytes.fromhex(file.sha256)) for name, file in self.files.items()
        }

    def split_key(self) -> bytes:
        """Returns the 32 bytes under which a private job decides which rows it holds out.

        Whoever chooses rows cannot choose their side: the key follows from the salt, which is secret.
        """
        return hmac.digest(bytes.fromhex(self.salt), SPLIT_DOMAIN, "sha256")


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle that was verified to its end.

    Args:
        grant: the provider's permissions and demands.
        manifest: digests and sizes, with which the extracted files agree.
        files: maps each name, relative to `data/`, to the extracted file.
        provider: provider key of who signed it, or its re-grant; None if nobody did.
    """

    grant: Grant
    manifest: Manifest
    files: dict[str, Path]
    provider: str | None = None

    @property
    def grants(self) -> tuple[Grant, ...]:
        """The grants of all providers: this one."""
        return (self.grant,)


def pack_bundle(
    target: BinaryIO, grant: Grant, files: Mapping[str, Path], sign: Sign | None = None
) -> Manifest:
    """Writes a bundle; the same grant and files give the same bytes.

    Args:
        target: receives the archive as plaintext.
        grant: the provider's permissions and demands.
        files: maps each name, relative to `data/`, to a file.
        sign: signs the bundle; None leaves it unsigned.

    Raises:
        UsageError: no file, a name that is not allowed, a file that does not exist or changes while it is read.
    """
    if not files:
        raise UsageError(ErrorCode.USAGE, "no data file to seal")
    archive = ArchiveWriter(target)
    archive.add_bytes(GRANT_NAME, grant.canonical())
    entries = {
        name: _add_file(archive, name, files[name]) for name in sorted(files, key=str.encode)
    }
    manifest = Manifest(version=1, salt=manifest_salt(grant.secret), files=entries)
    if len(manifest.canonical()) > MAX_MANIFEST_BYTES:  # the job would refuse it
        raise UsageError(
            ErrorCode.USAGE, "too many data files for one bundle", hint="join some of them"
        )
    archive.add_bytes(MANIFEST_NAME, manifest.canonical())
    if sign is not None:
        archive.add_bytes(SIGNATURE_NAME, sign(grant.sha256(), manifest.sha256()).canonical())
    archive.finish()
    return manifest


def unpack_bundle(
    source: BinaryIO,
    into: Path,
    *,
    limits: ArchiveLimits,
    check_grant: Callable[[Grant], None] = lambda _grant: None,
    check_signature: CheckSignature = lambda *_signature: None,
) -> OpenedBundle:
    """Reads a bundle to its end and extracts its data files to `into/data/`, which is removed on any error.

    Args:
        source: the archive as plaintext.
        into: an existing directory that only this process writes to.
        limits: limits on files and bytes.
        check_grant: called with the grant before any data is written; raises to refuse the bundle.
        check_signature: called at the end, with the signature or None; returns who signed, or raises to refuse.

    Raises:
        SealingError: BUNDLE_INVALID: the bundle does not follow the format, or a digest differs.
        UsageError: OUTPUT_EXISTS: `into/data` exists.
    """
    archive = ArchiveReader(source, limits)
    grant = read_document(archive, archive.next_member(), Grant, GRANT_NAME, MAX_GRANT_BYTES)
    check_grant(grant)
    with fresh_directory(into / "data"):
        extracted, next_member = _extract_data(archive, into)
        manifest = read_document(archive, next_member, Manifest, MANIFEST_NAME, MAX_MANIFEST_BYTES)
        signature = _read_signature(archive)
        _require_equal_files(manifest.files, extracted)
        provider = check_signature(signature, grant.sha256(), manifest.sha256())
    files = {name: into / DATA_PREFIX / name for name in extracted}
    return OpenedBundle(grant, manifest, files, provider)


def _add_file(archive: ArchiveWriter, name: str, path: Path) -> ManifestFile:
    try:
        _require_data_name(name)
    except ValueError as error:
        raise UsageError(ErrorCode.USAGE, f"{path}: {error}") from None
    if not path.exists():
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such file: {path}")
    if not path.is_file():
        raise UsageError(ErrorCode.USAGE, f"{path} is not a regular file")
    with translate_storage_errors(), path.open("rb") as source:
        # The size of the opened file; `add` refuses a file that grows or shrinks from here on.
        size = os.fstat(source.fileno()).st_size
        return ManifestFile(sha256=archive.add(DATA_PREFIX + name, source, size), size=size)


def _extract_data(
    archive: ArchiveReader, into: Path
) -> tuple[dict[str, ManifestFile], ArchiveMember | None]:
    """Extracts the members below `data/`; returns their digests and sizes, and the first member after them."""
    extracted: dict[str, ManifestFile] = {}
    previous = b""
    while (member := archive.next_member()) is not None and member.name.startswith(DATA_PREFIX):
        # One order, so that one dataset has one encoding.
        if member.name.encode() <= previous:
            raise bundle_invalid("data files are not in the order of their names")
        previous = member.name.encode()
        digest = extract_member(archive, member, into / member.name)
        extracted[member.name.removeprefix(DATA_PREFIX)] = ManifestFile(
            sha256=digest, size=member.size
        )
    return extracted, member


def _read_signature(archive: ArchiveReader) -> BundleSignature | None:
    """Reads the last member, if there is one, and requires that the archive ends there."""
    if (member := archive.next_member()) is None:
        return None
    signature = read_document(archive, member, BundleSignature, SIGNATURE_NAME, MAX_SIGNATURE_BYTES)
    if archive.next_member() is not None:
        raise bundle_invalid(f"a file follows {SIGNATURE_NAME}")
    return signature


def _require_equal_files(
    expected: Mapping[str, ManifestFile], found: Mapping[str, ManifestFile]
) -> None:
    """Compares manifest and extracted files; messages number the files and do not name them."""
    if expected.keys() != found.keys():
        missing, extra = len(expected.keys() - found.keys()), len(found.keys() - expected.keys())
        raise bundle_invalid(
            "files that only the manifest names and files that it lacks",
            "0 and 0",
            f"{missing} and {extra}",
        )
    for number, name in enumerate(sorted(expected, key=str.encode)):
        if expected[name] != found[name]:
            raise bundle_invalid(
                f"size and SHA-256 of data file {number}",
                f"{expected[name].size} {expected[name].sha256}",
                f"{found[name].size} {found[name].sha256}",
            )
