"""The dataset bundle: what a provider gives a job, as one archive.

`grant.json` first (for which job, to whom the result goes, until when), then the data files under `data/` in the
order of their names, then `manifest.json` with the digest and size of each. `seal.py` encrypts it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, field_validator

from trainer.attestation.evidence import AgeRecipient
from trainer.encoding import canonical_json, parse_json, sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.models import Sha256Hex, Strict, UnixTime
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
from trainer.sealing.atomic_files import translate_storage_errors
from trainer.sealing.extraction import extract_member, fresh_directory

GRANT_NAME: Final = "grant.json"
MANIFEST_NAME: Final = "manifest.json"
DATA_PREFIX: Final = "data/"
MAX_GRANT_BYTES: Final = 1 << 16
MAX_MANIFEST_BYTES: Final = 1 << 20

BundleLimits = ArchiveLimits
"""Bounds of a bundle; `grant.json` and `manifest.json` count as files."""


class GrantPermissions(Strict):
    """What the provider lets the job do beyond training.

    `private_progress`: losses and other metrics may be streamed, sealed, to the holder of the token.
    """

    private_progress: bool = True


class PrivacyDemand(Strict):
    """The provider takes no weights but differentially private ones, within this budget for each row."""

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_delta: Annotated[float, Field(gt=0, lt=1)]


class GrantDemands(Strict):
    """What the provider demands of the job beyond its spec; without it the job gives a failure report only."""

    privacy: PrivacyDemand


class Grant(Strict):
    """The provider's word to one job. It comes from inside the sealed bundle and from nowhere else."""

    version: Literal[1]
    job_spec_sha256: Sha256Hex
    recipients: Annotated[tuple[AgeRecipient, ...], Field(min_length=1, max_length=16)]
    """Who may open the result; all of one kind."""
    expires_at: UnixTime
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """32 random bytes in hex: who shows them may watch private progress."""
    allow: GrantPermissions = GrantPermissions()
    require: GrantDemands | None = None

    @field_validator("recipients")
    @classmethod
    def _usable(cls, recipients: tuple[str, ...]) -> tuple[str, ...]:
        # Found now, not after hours of training for a result that could not be sealed.
        try:
            recipient_types = {parse_recipient(text).recipient_type for text in recipients}
        except UsageError as error:
            raise ValueError(error.message) from None
        if len(recipient_types) > 1:
            raise ValueError("recipients of different kinds")
        return recipients

    def result_recipients(self) -> tuple[Recipient, ...]:
        """The recipients, ready to encrypt to."""
        return tuple(parse_recipient(text) for text in self.recipients)

    def canonical(self) -> bytes:
        """RFC 8785 bytes: the content of `grant.json`; what is not demanded is left out."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))


def _data_name(name: str) -> str:
    require_member_name(DATA_PREFIX + name)
    return name


DataName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_BYTES), AfterValidator(_data_name)]
"""Name of a data file, relative to `data/`: at most 95 bytes of UTF-8."""


class ManifestFile(Strict):
    """What one data file must be."""

    sha256: Sha256Hex
    size: Annotated[int, Field(ge=0, le=2**53 - 1)]


class Manifest(Strict):
    """Every data file of a bundle, by its name relative to `data/`."""

    version: Literal[1]
    files: Annotated[dict[DataName, ManifestFile], Field(min_length=1)]

    def canonical(self) -> bytes:
        """RFC 8785 bytes: the content of `manifest.json`."""
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """Digest of the whole dataset, as receipts name it."""
        return sha256_hex(self.canonical())


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle that was verified to its end.

    Args:
        grant: the provider's word.
        manifest: digests, all of which were met.
        files: name relative to `data/` → extracted file.
    """

    grant: Grant
    manifest: Manifest
    files: dict[str, Path]


def pack_bundle(target: BinaryIO, grant: Grant, files: Mapping[str, Path]) -> Manifest:
    """Write a bundle. The same grant and files give the same bytes.

    Args:
        target: takes the archive, in the clear.
        grant: the provider's word.
        files: name relative to `data/` → file.

    Raises:
        UsageError: no file, a name that cannot be one, a file that is missing or changes while it is read.
    """
    if not files:
        raise UsageError(ErrorCode.USAGE, "no data file to seal")
    archive = ArchiveWriter(target)
    _add_bytes(archive, GRANT_NAME, grant.canonical())
    entries = {name: _add_file(archive, name, files[name]) for name in sorted(files, key=str.encode)}
    manifest = Manifest(version=1, files=entries)
    if len(manifest.canonical()) > MAX_MANIFEST_BYTES:
        raise UsageError(ErrorCode.USAGE, "too many data files for one bundle", hint="join some of them")
    _add_bytes(archive, MANIFEST_NAME, manifest.canonical())
    archive.finish()
    return manifest


def unpack_bundle(
    source: BinaryIO,
    into: Path,
    *,
    limits: ArchiveLimits,
    admit: Callable[[Grant], None] = lambda _grant: None,
) -> OpenedBundle:
    """Read a bundle to its end and extract its data files to `into/data/`; on any error leave nothing there.

    Args:
        source: the archive, in the clear.
        into: an existing directory that only we write to.
        limits: bounds on files and bytes.
        admit: sees the grant before any data is written and raises to refuse it.

    Raises:
        SealingError: BUNDLE_INVALID: anything is not of the agreed form, or a digest differs.
        UsageError: OUTPUT_EXISTS: `into/data` is there already.
    """
    archive = ArchiveReader(source, limits)
    grant = _parse(Grant, GRANT_NAME, _read_document(archive, archive.next(), GRANT_NAME, MAX_GRANT_BYTES))
    admit(grant)
    with fresh_directory(into / "data"):
        found, last = _extract_data(archive, into)
        document = _read_document(archive, last, MANIFEST_NAME, MAX_MANIFEST_BYTES)
        manifest = _parse(Manifest, MANIFEST_NAME, document)
        if archive.next() is not None:
            raise bundle_invalid(f"a file follows {MANIFEST_NAME}")
        _require_same(manifest.files, found)
    return OpenedBundle(grant, manifest, {name: into / DATA_PREFIX / name for name in found})


def _add_bytes(archive: ArchiveWriter, name: str, data: bytes) -> None:
    archive.add(name, io.BytesIO(data), len(data))


def _add_file(archive: ArchiveWriter, name: str, path: Path) -> ManifestFile:
    try:
        _data_name(name)
    except ValueError as error:
        raise UsageError(ErrorCode.USAGE, f"{path}: {error}") from None
    if not path.exists():
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such file: {path}")
    if not path.is_file():
        raise UsageError(ErrorCode.USAGE, f"{path} is not a regular file")
    with translate_storage_errors(), path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        return ManifestFile(sha256=archive.add(DATA_PREFIX + name, source, size), size=size)


def _extract_data(archive: ArchiveReader, into: Path) -> tuple[dict[str, ManifestFile], ArchiveMember | None]:
    """Extract members below `data/`; returns what they are, and the first member that is not one of them."""
    found: dict[str, ManifestFile] = {}
    previous = b""
    while (member := archive.next()) is not None and member.name.startswith(DATA_PREFIX):
        if member.name.encode() <= previous:
            raise bundle_invalid("data files are not in the order of their names")
        previous = member.name.encode()
        digest = extract_member(archive, member, into / member.name)
        found[member.name.removeprefix(DATA_PREFIX)] = ManifestFile(sha256=digest, size=member.size)
    return found, member


def _read_document(archive: ArchiveReader, member: ArchiveMember | None, name: str, limit: int) -> bytes:
    if member is None or member.name != name:
        raise bundle_invalid("a member", name, "the end" if member is None else "another file")
    return archive.read(member, limit)


_Document = TypeVar("_Document", bound=Strict)


def _parse(model: type[_Document], name: str, data: bytes) -> _Document:
    try:
        parse_json(data)  # refuses what two readers could understand differently
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Keys may be names of private files; the schema's own names are not.
        where = first["loc"][0] if first["loc"] and first["loc"][0] in model.model_fields else "document"
        raise bundle_invalid(f"{name}: {where}: {first['type']}") from None
    except ValueError:
        raise bundle_invalid(f"{name}: not JSON in one reading") from None


def _require_same(expected: Mapping[str, ManifestFile], found: Mapping[str, ManifestFile]) -> None:
    if expected.keys() != found.keys():
        missing, extra = len(expected.keys() - found.keys()), len(found.keys() - expected.keys())
        raise bundle_invalid(
            "files that only the manifest names and files that it lacks", "0 and 0", f"{missing} and {extra}"
        )
    for number, name in enumerate(sorted(expected, key=str.encode)):
        if expected[name] != found[name]:
            raise bundle_invalid(
                f"size and SHA-256 of data file {number}",
                f"{expected[name].size} {expected[name].sha256}",
                f"{found[name].size} {found[name].sha256}",
            )
