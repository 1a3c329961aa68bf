"""The sealed checkpoint: training state that only the job that wrote it can read and will accept.

A checkpoint is an age file to the job's checkpoint identity, with an archive in it: `checkpoint.json`, then the
files that it lists, in the order of their names.

Encryption alone does not authenticate the writer: whoever knows the recipient can make an age file for it. So
`checkpoint.json` carries a tag, an HMAC under a key that only the job and its providers can derive, over the step,
what the checkpoint is bound to, and the digest of each file. The operator stores checkpoints; without the tag and
the binding it could give the job a checkpoint of its own making, or one of another job.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final

from pydantic import Field, ValidationError

from trainer.atomic_files import SHARED_MODE, replace_atomically, translate_storage_errors
from trainer.encoding import canonical_json, parse_json, stream_sha256
from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.models import MAX_STATUS_STEPS, One, Sha256Hex, Strict
from trainer.sealing.age import Identity, decrypting_reader, encrypting_writer, identity_from_seed
from trainer.sealing.archive import ArchiveLimits, ArchiveReader, ArchiveWriter
from trainer.sealing.extraction import extract_member, fresh_directory
from trainer.sealing.sealed_result import open_inside
from trainer.sealing.wiping import wipe, wiped

HEADER_NAME: Final = "checkpoint.json"
MAX_FILES: Final = 8
CHECKPOINT_KEY_BYTES: Final = 72
_MAX_HEADER_BYTES: Final = 1 << 14

_FileName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]


class CheckpointBinding(Strict):
    """The job spec, dataset and app that a checkpoint belongs to; it is refused for any other."""

    job_spec_sha256: Sha256Hex
    dataset_manifest_sha256: Sha256Hex
    app_compose_sha256: Sha256Hex


class CheckpointFile(Strict):
    """Digest and size of one file."""

    sha256: Sha256Hex
    size: Annotated[int, Field(ge=0, le=2**53 - 1)]


class CheckpointHeader(Strict):
    """`checkpoint.json`; `tag` authenticates all other fields."""

    version: One
    step: Annotated[int, Field(ge=1, le=MAX_STATUS_STEPS)]
    binding: CheckpointBinding
    files: Annotated[dict[_FileName, CheckpointFile], Field(min_length=1, max_length=MAX_FILES)]
    tag: Sha256Hex

    def canonical(self) -> bytes:
        """Returns the content of `checkpoint.json`: RFC 8785 JSON."""
        return canonical_json(self.model_dump(mode="json"))


@dataclass(frozen=True, repr=False)
class CheckpointKeys:
    """The checkpoint keys of one job with one dataset.

    Args:
        identity: age identity that checkpoints are encrypted to.
        authentication: HMAC key of the tag, 32 bytes.
        label: 16 hex digits for file names. They reveal only whether two files belong to the same job.
    """

    identity: Identity
    authentication: bytearray
    label: str

    @classmethod
    def from_material(cls, material: bytes | bytearray) -> CheckpointKeys:
        """Splits 72 derived bytes into age seed (32), HMAC key (32) and label (8).

        Raises:
            ValueError: another length.
        """
        if len(material) != CHECKPOINT_KEY_BYTES:
            raise ValueError(f"expected {CHECKPOINT_KEY_BYTES} bytes, got {len(material)}")
        with wiped(bytearray(material[:32])) as seed:
            return cls(identity_from_seed(seed), bytearray(material[32:64]), material[64:].hex())

    def destroy(self) -> None:
        """Overwrites the identity's seed and the HMAC key; nothing can be opened or tagged afterwards."""
        self.identity.destroy()
        wipe(self.authentication)

    def tag(
        self, version: int, step: int, binding: CheckpointBinding, files: dict[str, CheckpointFile]
    ) -> str:
        """Returns HMAC-SHA256(authentication, RFC 8785 JSON of `checkpoint.json` without `tag`) in hex."""
        entries = {name: entry.model_dump(mode="json") for name, entry in files.items()}
        document = {
            "version": version,
            "step": step,
            "binding": binding.model_dump(mode="json"),
            "files": entries,
        }
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
    """Seals files that the worker wrote; returns the size of `target` in bytes.

    Args:
        folder: the worker's directory; symbolic links below it are not followed.
        names: paths of the files below `folder`; their last components are the names in the archive.
        target: the age file; replaced atomically, and left as it was on any error.
        step: number of optimizer steps done.
        binding: what the checkpoint belongs to.
        keys: the job's checkpoint keys.

    Raises:
        SealingError: CHECKPOINT_INVALID: a file is missing, not a regular file, or changes while it is read.
        UnavailableError: STORAGE_FULL.
    """
    paths = {path.rpartition("/")[2]: path for path in names}
    # The header comes first in the archive and contains the digests, so each file is read twice. `_add_file`
    # compares the second read with the first, because the worker could change a file in between.
    files = {}
    for name in sorted(paths):
        with _open_regular_file(folder, paths[name]) as file:
            files[name] = CheckpointFile(
                sha256=stream_sha256(file), size=os.fstat(file.fileno()).st_size
            )
    header = CheckpointHeader(
        version=1, step=step, binding=binding, files=files, tag=keys.tag(1, step, binding, files)
    ).canonical()
    with replace_atomically(target, SHARED_MODE) as sealed:
        with encrypting_writer(sealed, [keys.identity.recipient()]) as stream:
            archive = ArchiveWriter(stream)
            archive.add_bytes(HEADER_NAME, header)
            for name, entry in files.items():
                with _open_regular_file(folder, paths[name]) as file:
                    _add_file(archive, name, file, entry)
            archive.finish()
        return sealed.tell()


def open_checkpoint(
    source: BinaryIO, into: Path, *, step: int, binding: CheckpointBinding, keys: CheckpointKeys
) -> CheckpointHeader:
    """Opens a checkpoint into a new directory; on any error, the directory is removed again.

    Args:
        source: the age file; whoever stores it may have replaced it with anything.
        into: directory to create, in a tmpfs that only this process writes to.
        step: the step in the file's name.
        binding: job spec, dataset and app of this job.
        keys: the job's checkpoint keys.

    Raises:
        SealingError: as `age.decrypt`; BUNDLE_INVALID; CHECKPOINT_INVALID: it belongs to something else.
        UsageError: OUTPUT_EXISTS.
        UnavailableError: STORAGE_FULL.
    """
    # age does not compress: what a file contains is smaller than the file.
    limits = ArchiveLimits(max_files=1 + MAX_FILES, max_bytes=os.fstat(source.fileno()).st_size)
    with (
        translate_storage_errors(),
        fresh_directory(into),
        decrypting_reader(source, [keys.identity]) as stream,
    ):
        archive = ArchiveReader(stream, limits)
        header = _read_header(archive)
        # Before any file is written: only a header of this job may decide what is extracted.
        _require_own_checkpoint(header, step, binding, keys)
        for name in sorted(header.files):
            member, entry = archive.next_member(), header.files[name]
            if member is None or member.name != name:
                raise _checkpoint_invalid("its files are not those that its header lists")
            if (
                member.size != entry.size
                or extract_member(archive, member, into / name) != entry.sha256
            ):
                raise _checkpoint_invalid(f"{name} is not what its header lists")
        if archive.next_member() is not None:
            raise _checkpoint_invalid("a file that its header does not list")
    return header


def _open_regular_file(folder: Path, name: str) -> BinaryIO:
    try:
        file = open_inside(folder, name)
    except OSError as error:
        raise _checkpoint_invalid(f"{name} cannot be read") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _checkpoint_invalid(f"{name} is not a regular file")
    return file


def _add_file(archive: ArchiveWriter, name: str, file: BinaryIO, entry: CheckpointFile) -> None:
    try:
        digest = archive.add(name, file, entry.size)
    except UsageError as error:
        raise _checkpoint_invalid(error.message) from error
    if digest != entry.sha256:
        raise _checkpoint_invalid(f"{name} changed while it was read")


def _read_header(archive: ArchiveReader) -> CheckpointHeader:
    member = archive.next_member()
    if member is None or member.name != HEADER_NAME:
        raise _checkpoint_invalid(f"{HEADER_NAME} is not its first file")
    document = archive.read_member(member, _MAX_HEADER_BYTES)
    try:
        parse_json(document)  # refuses duplicate keys, which two readers could read differently
        return CheckpointHeader.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _checkpoint_invalid(f"{HEADER_NAME}: {first['loc'][:1]}: {first['type']}") from None
    except ValueError:
        raise _checkpoint_invalid(f"{HEADER_NAME} is not JSON in one reading") from None


def _require_own_checkpoint(
    header: CheckpointHeader, step: int, binding: CheckpointBinding, keys: CheckpointKeys
) -> None:
    """Checks the tag first: it authenticates the fields that the other checks compare."""
    expected = keys.tag(header.version, header.step, header.binding, header.files)
    if not hmac.compare_digest(expected, header.tag):
        raise _checkpoint_invalid("its tag is not this job's")
    if header.binding != binding:
        raise _checkpoint_invalid("it is of another job, dataset or app")
    if header.step != step:
        raise _checkpoint_invalid("step", f"{step}, as its name says", header.step)


def _checkpoint_invalid(reason: str, expected: object = None, found: object = None) -> SealingError:
    return SealingError(
        ErrorCode.CHECKPOINT_INVALID, f"checkpoint: {reason}", expected=expected, found=found
    )
