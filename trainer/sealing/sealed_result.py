"""The sealed result: a directory as an archive in an age file, which `age -d … | tar x` opens as well."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from trainer.atomic_files import SHARED_MODE, replace_atomically
from trainer.sealing.age import (
    Identity,
    ProgressCallback,
    Recipient,
    decrypting_reader,
    encrypting_writer,
)
from trainer.sealing.archive import (
    ArchiveLimits,
    ArchiveReader,
    ArchiveWriter,
    bundle_invalid,
    require_member_name,
)
from trainer.sealing.extraction import empty_directory, extract_member


@dataclass(frozen=True)
class SealedResult:
    """Size in bytes and SHA-256 in hex of a sealed result, as it was written."""

    size: int
    sha256: str


def seal_result(
    tree: Path,
    target: Path,
    recipients: Sequence[Recipient],
    *,
    progress: ProgressCallback | None = None,
) -> SealedResult:
    """Encrypts all files below a directory, in the order of their names as UTF-8 bytes.

    Args:
        tree: a directory that the worker wrote. It may contain regular files and directories only; a symbolic link
            could lead to the supervisor's files.
        target: the age file, which everybody may read; replaced atomically, and left as it was on any error.
        recipients: the grant's; of one recipient type.
        progress: called with the number of plaintext bytes encrypted so far.

    Raises:
        SealingError: BUNDLE_INVALID: a link or device, or a name that is not allowed in an archive.
        UsageError: FILE_NOT_FOUND, RECIPIENT_INVALID; USAGE: a file changes while it is read.
        UnavailableError: STORAGE_FULL.
    """
    with replace_atomically(target, SHARED_MODE) as sealed:
        # By descriptor, and hashed on the way: at any later time another file, or a link, may have this name.
        os.fchmod(sealed.fileno(), SHARED_MODE)
        hashing = _HashingWriter(sealed)
        with encrypting_writer(cast("BinaryIO", hashing), recipients, progress=progress) as stream:
            archive = ArchiveWriter(stream)
            for name in sorted(_list_files(tree), key=str.encode):
                # The size of the opened file: by now, another process may have put another file under the name.
                with open_inside(tree, name) as source:
                    archive.add(name, source, os.fstat(source.fileno()).st_size)
            archive.finish()
        return SealedResult(sealed.tell(), hashing.digest.hexdigest())


def open_result(
    source: Path,
    identities: Sequence[Identity],
    into: Path,
    *,
    limits: ArchiveLimits,
    progress: ProgressCallback | None = None,
) -> tuple[str, ...]:
    """Decrypts a result into an empty directory; on any error the directory is empty again.

    Args:
        source: the age file.
        identities: the provider's.
        into: an empty directory that only this process writes to; the caller renames it after further checks.
        limits: limits on files and bytes.
        progress: called with the number of plaintext bytes decrypted so far.

    Returns:
        Names of the files, relative to `into`, in order.

    Raises:
        SealingError: as `age.decrypt`; BUNDLE_INVALID.
        UsageError: FILE_NOT_FOUND, OUTPUT_EXISTS.
        UnavailableError: STORAGE_FULL.
    """
    with (
        empty_directory(into),
        source.open("rb", buffering=0) as sealed,
        decrypting_reader(sealed, identities, progress=progress) as stream,
    ):
        archive, names, previous = ArchiveReader(stream, limits), [], b""
        while (member := archive.next_member()) is not None:
            # One order, so that one list of files has one encoding.
            if member.name.encode() <= previous:
                raise bundle_invalid("files are not in the order of their names")
            previous = member.name.encode()
            extract_member(archive, member, into / member.name)
            names.append(member.name)
        return tuple(names)


class _HashingWriter:
    """Writes to a file, which may take a part at a time, and hashes what it took."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int | None:
        written = cast("int | None", self._file.write(data))
        self.digest.update(memoryview(data)[:written])
        return written


def _list_files(directory: str | os.PathLike[str], prefix: str = "") -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _list_files(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield _require_member_name(prefix + entry.name)
            else:
                raise bundle_invalid(
                    "kind of a file to seal", "a regular file or directory", "another kind"
                )


def _require_member_name(name: str) -> str:
    try:
        return require_member_name(name)
    except ValueError as error:
        raise bundle_invalid(str(error)) from None


def open_inside(tree: Path, name: str) -> BinaryIO:
    """Opens a file below `tree` for reading; raises OSError if any component of `name` is a symbolic link.

    Another process may replace a component while this runs. Each one is therefore opened relative to the
    descriptor of the directory before it and without following links; checking the path first would leave time for
    a swap.
    """
    *directories, file_name = PurePosixPath(name).parts
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as stack:
        directory = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, directory)
        for component in directories:
            directory = os.open(component, flags | os.O_DIRECTORY, dir_fd=directory)
            stack.callback(os.close, directory)
        # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
        descriptor = os.open(file_name, flags | os.O_NONBLOCK, dir_fd=directory)
        return open(descriptor, "rb")  # noqa: PTH123 -- takes a descriptor
