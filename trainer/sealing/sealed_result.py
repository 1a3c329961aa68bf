"""The sealed result: a directory as an archive in an age file; `age -d … | tar x` opens it as well."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO

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
from trainer.sealing.atomic_files import SHARED_MODE, replace_atomically
from trainer.sealing.extraction import empty_directory, extract_member


def seal_result(
    tree: Path, target: Path, recipients: Sequence[Recipient], *, progress: ProgressCallback | None = None
) -> int:
    """Encrypt all files below a directory, in the order of their names.

    Args:
        tree: holds regular files and directories only. The worker made it: a link in it could lead to keys.
        target: the age file; replaced at once, untouched on any error.
        recipients: of one recipient type; from the grant.
        progress: told of plaintext bytes done.

    Returns:
        Size of `target` in bytes.

    Raises:
        SealingError: BUNDLE_INVALID: a link or device among the files, or a name that an archive cannot hold.
        UsageError: FILE_NOT_FOUND, RECIPIENT_INVALID; USAGE where a file changes while it is read.
        UnavailableError: STORAGE_FULL.
    """
    with replace_atomically(target, SHARED_MODE) as sealed:
        with encrypting_writer(sealed, recipients, progress=progress) as stream:
            archive = ArchiveWriter(stream)
            for name in sorted(_names(tree), key=str.encode):
                with open_inside(tree, name) as source:
                    archive.add(name, source, os.fstat(source.fileno()).st_size)
            archive.finish()
        return sealed.tell()


def open_result(
    source: Path,
    identities: Sequence[Identity],
    into: Path,
    *,
    limits: ArchiveLimits,
    progress: ProgressCallback | None = None,
) -> tuple[str, ...]:
    """Decrypt a result into an empty directory; on any error the directory is empty again.

    Args:
        source: the age file.
        identities: the provider's.
        into: an empty directory that only we write to; the caller gives it its final name afterwards.
        limits: bounds on files and bytes.
        progress: told of plaintext bytes done.

    Returns:
        Names of the files, relative to `into`, in order.

    Raises:
        SealingError: what `age.decrypt` raises; BUNDLE_INVALID.
        UsageError: FILE_NOT_FOUND, OUTPUT_EXISTS.
        UnavailableError: STORAGE_FULL.
    """
    with (
        empty_directory(into),
        source.open("rb", buffering=0) as sealed,
        decrypting_reader(sealed, identities, progress=progress) as stream,
    ):
        return tuple(_extract_all(ArchiveReader(stream, limits), into))


def _extract_all(archive: ArchiveReader, into: Path) -> Iterator[str]:
    previous = b""
    while (member := archive.next()) is not None:
        if member.name.encode() <= previous:
            raise bundle_invalid("files are not in the order of their names")
        previous = member.name.encode()
        extract_member(archive, member, into / member.name)
        yield member.name


def _names(directory: str | os.PathLike[str], prefix: str = "") -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _names(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield _member_name(prefix + entry.name)
            else:
                raise bundle_invalid("kind of a file to seal", "a regular file or directory", "another kind")


def _member_name(name: str) -> str:
    try:
        return require_member_name(name)
    except ValueError as error:
        raise bundle_invalid(str(error)) from None


def open_inside(tree: Path, name: str) -> BinaryIO:
    """Open a file below `tree`; fails if any part of the way has become a symbolic link."""
    *directories, last = PurePosixPath(name).parts
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as stack:
        at = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, at)
        for part in directories:
            at = os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
            stack.callback(os.close, at)
        return open(os.open(last, flags | os.O_NONBLOCK, dir_fd=at), "rb")  # noqa: PTH123 -- takes a descriptor
