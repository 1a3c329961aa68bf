"""Extraction of archive members into a private directory, which is emptied or removed again on any error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainer.atomic_files import PRIVATE_MODE, create_file, translate_storage_errors
from trainer.errors import ErrorCode, UsageError
from trainer.sealing.age.byte_streams import write_all
from trainer.sealing.archive import ArchiveMember, ArchiveReader, bundle_invalid


@contextmanager
def fresh_directory(path: Path) -> Iterator[None]:
    """Creates a private directory (mode 0700), and removes it with its content if the context raises.

    Raises:
        UsageError: OUTPUT_EXISTS; FILE_NOT_FOUND: its parent does not exist.
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
    """Requires an existing empty directory, and empties it again if the context raises.

    Raises:
        UsageError: OUTPUT_EXISTS: it is not empty; FILE_NOT_FOUND.
    """
    with translate_storage_errors():
        if any(path.iterdir()):
            raise UsageError(ErrorCode.OUTPUT_EXISTS, f"{path} is not empty")
        try:
            yield
        except BaseException:
            for entry in path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            raise


def extract_member(archive: ArchiveReader, member: ArchiveMember, target: Path) -> str:
    """Writes a member to the new file `target` (mode 0600); returns its SHA-256 in hex.

    Args:
        archive: the reader whose `next_member` returned `member`.
        member: the member to write.
        target: a path below a directory that only this process writes to, so that no component is a symbolic link.

    Raises:
        SealingError: BUNDLE_INVALID; also if the name of one file is the directory of another.
    """
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = create_file(target, PRIVATE_MODE)
    except (FileExistsError, NotADirectoryError):
        raise bundle_invalid("a file has the name of another file or directory") from None
    with file:
        return archive.copy_member(member, partial(write_all, file))
