"""The sealed checkpoint: what a training job was when it stopped, for that job alone to go on from.

One age file to the job's checkpoint identity, with an archive in it: `checkpoint.json` first, which says what the
checkpoint is of and lists the files that follow in the order of their names. age tells nobody who wrote a file,
so `checkpoint.json` carries an HMAC under a key that only the job can derive.
"""

from __future__ import annotations

import hmac
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

from pydantic import Field, ValidationError

from trainer.encoding import canonical_json, parse_json, stream_sha256
from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.models import MAX_STATUS_STEPS, Sha256Hex, Strict
from trainer.sealing.age import Identity, decrypting_reader, encrypting_writer, identity_from_seed
from trainer.sealing.archive import ArchiveLimits, ArchiveReader, ArchiveWriter
from trainer.sealing.atomic_files import SHARED_MODE, replace_atomically, translate_storage_errors
from trainer.sealing.extraction import extract_member, fresh_directory
from trainer.sealing.sealed_result import open_inside
from trainer.sealing.wiping import wipe, wiped

HEADER_NAME: Final = "checkpoint.json"
MAX_FILES: Final = 8
_MAX_HEADER_BYTES: Final = 1 << 14

_FileName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]


class CheckpointBinding(Strict):
    """What a checkpoint is of; it fits nothing else."""

    job_spec_sha256: Sha256Hex
    dataset_manifest_sha256: Sha256Hex
    app_compose_sha256: Sha256Hex


class CheckpointFile(Strict):
    """What one file must be."""

    sha256: Sha256Hex
    size: Annotated[int, Field(ge=0, le=2**53 - 1)]


class CheckpointHeader(Strict):
    """`checkpoint.json`. `tag` is over all the rest."""

    version: Literal[1]
    step: Annotated[int, Field(ge=1, le=MAX_STATUS_STEPS)]
    binding: CheckpointBinding
    files: Annotated[dict[_FileName, CheckpointFile], Field(min_length=1, max_length=MAX_FILES)]
    tag: Sha256Hex

    def canonical(self) -> bytes:
        """RFC 8785 bytes: the content of `checkpoint.json`."""
        return canonical_json(self.model_dump(mode="json"))


@dataclass(frozen=True, repr=False)
class CheckpointKeys:
    """Of one job with one dataset.

    Args:
        identity: seals and opens.
        authentication: 32 bytes; key of the tag.
        label: 16 hex digits, for the files' names. It tells nothing but that two files are of one job.
    """

    identity: Identity
    authentication: bytearray
    label: str

    @classmethod
    def of(cls, material: bytes | bytearray) -> CheckpointKeys:
        """Cut 72 derived bytes into seed (32), authentication key (32) and label (8).

        Raises:
            ValueError: another length.
        """
        if len(material) != 72:
            raise ValueError(f"expected 72 bytes, got {len(material)}")
        with wiped(bytearray(material[:32])) as seed:
            return cls(identity_from_seed(seed), bytearray(material[32:64]), material[64:].hex())

    def destroy(self) -> None:
        """Overwrite what is ours; nothing can be sealed, opened or tagged with it afterwards."""
        self.identity.destroy()
        wipe(self.authentication)

    def tag(self, version: int, step: int, binding: CheckpointBinding, files: dict[str, CheckpointFile]) -> str:
        """HMAC-SHA256 over the RFC 8785 bytes of `checkpoint.json` without its tag, in hex."""
        entries = {name: entry.model_dump(mode="json") for name, entry in files.items()}
        document = {"version": version, "step": step, "binding": binding.model_dump(mode="json"), "files": entries}
        return hmac.digest(self.authentication, canonical_json(document), "sha256").hex()


def seal_checkpoint(
    folder: Path,
    names: Sequence[str],
    target: Path,
    *,
    step: int,
    binding: CheckpointBinding,
    keys: CheckpointKeys,
) -> int:
    """Seal files of a directory that another process wrote; returns the size of `target` in bytes.

    Args:
        folder: theirs; no link on the way to a file is followed.
        names: paths of the files below `folder`; the archive has their last parts.
        target: the age file; replaced at once, untouched on any error.
        step: optimizer steps done.
        binding: what it is of.
        keys: the job's.

    Raises:
        SealingError: CHECKPOINT_INVALID: a file is missing, no regular file, or changes meanwhile.
        UnavailableError: STORAGE_FULL.
    """
    paths = {path.rpartition("/")[2]: path for path in names}
    files = {name: _describe(folder, paths[name]) for name in sorted(paths)}
    header = CheckpointHeader(
        version=1, step=step, binding=binding, files=files, tag=keys.tag(1, step, binding, files)
    ).canonical()
    with replace_atomically(target, SHARED_MODE) as sealed:
        with encrypting_writer(sealed, [keys.identity.recipient()]) as stream:
            archive = ArchiveWriter(stream)
            archive.add(HEADER_NAME, io.BytesIO(header), len(header))
            for name, entry in files.items():
                with _open(folder, paths[name]) as file:
                    _add(archive, name, file, entry)
            archive.finish()
        return sealed.tell()


def open_checkpoint(
    source: BinaryIO, into: Path, *, step: int, binding: CheckpointBinding, keys: CheckpointKeys
) -> CheckpointHeader:
    """Open a checkpoint into a new directory; on any error, a file cut short among them, it is not there.

    Args:
        source: the age file; whoever stores it may have put anything there.
        into: directory to make, in memory that only we write to.
        step: what the file's name says it is of.
        binding: what this job is.
        keys: the job's.

    Raises:
        SealingError: what `age.decrypt` raises; BUNDLE_INVALID; CHECKPOINT_INVALID where it is of something else.
        UsageError: OUTPUT_EXISTS.
        UnavailableError: STORAGE_FULL.
    """
    limits = ArchiveLimits(max_files=1 + MAX_FILES, max_bytes=os.fstat(source.fileno()).st_size)
    with translate_storage_errors(), fresh_directory(into), decrypting_reader(source, [keys.identity]) as stream:
        archive = ArchiveReader(stream, limits)
        header = _header(archive)
        _require_ours(header, step, binding, keys)
        for name in sorted(header.files):
            _extract(archive, into, name, header.files[name])
        if archive.next() is not None:
            raise _invalid("a file that its header does not list")
    return header


def _describe(folder: Path, name: str) -> CheckpointFile:
    with _open(folder, name) as file:
        return CheckpointFile(sha256=stream_sha256(file), size=os.fstat(file.fileno()).st_size)


def _open(folder: Path, name: str) -> BinaryIO:
    try:
        file = open_inside(folder, name)
    except OSError as error:
        raise _invalid(f"{name} cannot be read") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _invalid(f"{name} is not a regular file")
    return file


def _add(archive: ArchiveWriter, name: str, file: BinaryIO, entry: CheckpointFile) -> None:
    try:
        digest = archive.add(name, file, entry.size)
    except UsageError as error:
        raise _invalid(error.message) from error
    if digest != entry.sha256:
        raise _invalid(f"{name} changed while it was read")


def _header(archive: ArchiveReader) -> CheckpointHeader:
    member = archive.next()
    if member is None or member.name != HEADER_NAME:
        raise _invalid(f"{HEADER_NAME} is not its first file")
    document = archive.read(member, _MAX_HEADER_BYTES)
    try:
        parse_json(document)  # refuses what two readers could understand differently
        return CheckpointHeader.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _invalid(f"{HEADER_NAME}: {first['loc'][:1]}: {first['type']}") from None
    except ValueError:
        raise _invalid(f"{HEADER_NAME} is not JSON in one reading") from None


def _require_ours(header: CheckpointHeader, step: int, binding: CheckpointBinding, keys: CheckpointKeys) -> None:
    expected = keys.tag(header.version, header.step, header.binding, header.files)
    if not hmac.compare_digest(expected, header.tag):
        raise _invalid("its tag is not this job's")
    if header.binding != binding:
        raise _invalid("it is of another job, dataset or app")
    if header.step != step:
        raise _invalid("step", f"{step}, as its name says", header.step)


def _extract(archive: ArchiveReader, into: Path, name: str, entry: CheckpointFile) -> None:
    member = archive.next()
    if member is None or member.name != name:
        raise _invalid("its files are not those that its header lists")
    if member.size != entry.size or extract_member(archive, member, into / name) != entry.sha256:
        raise _invalid(f"{name} is not what its header lists")


def _invalid(what: str, expected: object = None, found: object = None) -> SealingError:
    return SealingError(ErrorCode.CHECKPOINT_INVALID, f"checkpoint: {what}", expected=expected, found=found)
