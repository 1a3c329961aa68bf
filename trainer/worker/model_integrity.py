"""The base model's files, hashed once more by the process that loads them.

The fetch process has hashed what it stored. Between its check and the loading lie a process that has ended, and
minutes in which the job waits for its dataset. The worker relies on neither: it hashes the files before it
reads them, and looks after its last reading whether they are still the same ones.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, JobError

_THREADS: Final = 4  # hashing releases the GIL


@dataclass(frozen=True)
class VerifiedModel:
    """A model directory whose files had the pinned digests.

    Attributes:
        directory: the directory.
        pinned: maps each file to its SHA-256.
        identities: maps each file to device, inode, size and the times of its last changes, when it was hashed.
    """

    directory: Path
    pinned: Mapping[str, str]
    identities: Mapping[str, tuple[int, ...]]

    def require_unchanged(self) -> None:
        """Requires that no file was replaced or written to since it was hashed.

        Raises:
            JobError: MODEL_DIGEST_MISMATCH.
        """
        if _identities(self.directory) != self.identities:
            raise JobError(
                ErrorCode.MODEL_DIGEST_MISMATCH,
                "the base model's files were changed while they were used",
            )


def verify_model(directory: Path, pinned: Mapping[str, str]) -> VerifiedModel:
    """Hashes every file below `directory`.

    Args:
        directory: the base model.
        pinned: maps each file that it has to its SHA-256, as the job spec has it.

    Raises:
        JobError: MODEL_INVALID: a file is missing, there is one more, or one is no regular file;
            MODEL_DIGEST_MISMATCH.
    """
    identities = _identities(directory)  # before the first byte is hashed
    if different := sorted(identities.keys() ^ pinned.keys()):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's files",
            expected="exactly those that the job spec pins",
            found=f"one less: {different[0]}"
            if different[0] in pinned
            else f"one more: {different[0]}",
        )
    _require_regular_files(identities)
    names = sorted(pinned)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(
            zip(names, threads.map(lambda name: file_sha256(directory / name), names), strict=True)
        )
    for name in names:
        if found[name] != pinned[name]:
            raise JobError(
                ErrorCode.MODEL_DIGEST_MISMATCH,
                f"base model file {name} is not the one the job spec pins (SHA-256)",
                expected=pinned[name],
                found=found[name],
            )
    return VerifiedModel(directory, dict(pinned), identities)


def _require_regular_files(identities: Mapping[str, tuple[int, ...]]) -> None:
    # A link would be hashed through: it stays the same while it leads to other bytes. A FIFO would block.
    for name, (mode, *_) in sorted(identities.items()):
        if not stat.S_ISREG(mode):
            raise JobError(
                ErrorCode.MODEL_INVALID,
                f"base model file {name}",
                expected="a regular file",
                found=stat.filemode(mode),
            )


def _identities(directory: Path) -> dict[str, tuple[int, ...]]:
    """Maps each file to what tells it from others, and its content from an earlier one; follows no links.

    A link to a directory counts as a file: what reads the model would go through it.
    """
    paths = (
        Path(folder, name)
        for folder, folders, names in os.walk(directory)
        for name in (*folders, *names)
    )
    statuses = ((path.relative_to(directory).as_posix(), path.lstat()) for path in paths)
    return {
        name: (
            status.st_mode,
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        for name, status in statuses
        if not stat.S_ISDIR(status.st_mode)
    }
