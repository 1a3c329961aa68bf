"""Extraction: members of an archive become files below a directory that is ours, or nothing stays behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainer.errors import ErrorCode, UsageError
from trainer.sealing.age.byte_streams import write_all
from trainer.sealing.archive import ArchiveMember, ArchiveReader, bundle_invalid
from trainer.sealing.atomic_files import PRIVATE_MODE, translate_storage_errors


@contextmanager
def fresh_directory(path: Path) -> Iterator[None]:
    """Make a private directory; remove it with all that is in it if the context fails.

    Raises:
        UsageError: OUTPUT_EXISTS; FILE_NOT_FOUND where its parent is missing.
    """
    with translate_storage_errors():
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            raise UsageError(ErrorCode.OUTPUT_EXISTS, f"{path} exists") from None
        try:
            yield
        except BaseException:
            shutil.rmtree(path)
            raise


@contextmanager
def empty_directory(path: Path) -> Iterator[None]:
    """Demand an empty directory; empty it again if the context fails.

    Raises:
        UsageError: OUTPUT_EXISTS where something is in it; FILE_NOT_FOUND.
    """
    with translate_storage_errors():
        if any(path.iterdir()):
            raise UsageError(ErrorCode.OUTPUT_EXISTS, f"{path} is not empty")
        try:
            yield
        except BaseException:
            for entry in path.iterdir():
                _remove(entry)
            raise


def extract_member(archive: ArchiveReader, member: ArchiveMember, target: Path) -> str:
    """Write the member at hand to `target` (mode 0600), a new file, and return its SHA-256.

    Args:
        archive: whose `next()` gave `member`.
        member: what to write.
        target: path below a directory that only we write to, so that no link can stand in its way.

    Raises:
        SealingError: BUNDLE_INVALID; also where the name of one file is the directory of another.
    """
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE
        )
    except (FileExistsError, NotADirectoryError):
        raise bundle_invalid("a file has the name of another file or directory") from None
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 -- takes a descriptor
        return archive.copy(member, partial(write_all, file))


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
