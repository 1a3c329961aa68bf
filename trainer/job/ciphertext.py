"""The ciphertext directory: the files of a job that lie on the operator's disk.

The operator can change every byte in it. Each file is authenticated when it is opened, not when it is found.
"""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, UsageError
from trainer.exchange.spool import (
    DATASET_NAME,
    DELETION_NAME,
    REGRANT_NAME,
    RESULT_NAME,
    RETAINED_DATASET_NAME,
    SpoolDirectory,
)
from trainer.job.start_checks import require_usable_directory
from trainer.models import MAX_REGRANT_BYTES

END_RECORD_NAME: Final = "end.sealed"
CHECKPOINT_NAME: Final = re.compile(r"checkpoint-([0-9a-f]{16})-([0-9]{16})\.age")
"""Label of the job and its dataset in hex, and step."""

_MEMBER_NAME: Final = re.compile(r"member-[0-9]{2}\.age")

FileIdentity = tuple[int, int, int]
"""Inode, size in bytes and time of the last change in nanoseconds."""


@dataclass(frozen=True)
class CiphertextDirectory:
    """The ciphertext directory and the names of its files.

    Args:
        folder: the directory.
        persistent: whether the operator named it, so that it can outlive this container.
    """

    folder: Path
    persistent: bool

    @property
    def dataset(self) -> Path:
        """The sealed upload.

        In a persistent directory it stays until the job is done. A restarted job derives the same key and opens
        it again, or its provider grants it again: either way it is sent once.
        """
        return self.folder / DATASET_NAME

    def member(self, number: int) -> Path:
        """Returns the sealed dataset of the provider with a number, of a joint job, once it has opened."""
        return self.folder / f"member-{number:02d}.age"

    @property
    def retained_dataset(self) -> Path:
        """A sealed dataset that waits for its provider to grant it again; uploads do not replace it."""
        return self.folder / RETAINED_DATASET_NAME

    @property
    def result(self) -> Path:
        """The sealed result or failure report."""
        return self.folder / RESULT_NAME

    @property
    def deletion(self) -> Path:
        """The signed deletion statement; public."""
        return self.folder / DELETION_NAME

    @property
    def end_record(self) -> Path:
        """The sealed record of how the job ended."""
        return self.folder / END_RECORD_NAME

    def dataset_bytes(self) -> int | None:
        """Returns the size of the sealed upload; None without one. A link counts for none."""
        return found[1] if (found := _identity(self.dataset)) is not None else None

    def dataset_identity(self) -> FileIdentity | None:
        """Returns what tells the sealed upload from a later one of the same name; None without one."""
        return _identity(self.dataset)

    def retain_dataset(self) -> None:
        """Sets the sealed upload aside until its provider grants it again."""
        self.dataset.replace(self.retained_dataset)

    def restore_dataset(self) -> None:
        """Makes a dataset that was set aside the sealed upload again, unless there is another one."""
        if _identity(self.dataset) is None and _identity(self.retained_dataset) is not None:
            self.remove_dataset()
            with suppress(OSError):  # a directory in its place is the operator's
                self.retained_dataset.replace(self.dataset)

    def take_regrant(self) -> bytes:
        """Removes the re-grant and returns it; empty if there is none, or a larger file than one can be."""
        return SpoolDirectory(self.folder).take(REGRANT_NAME, MAX_REGRANT_BYTES) or b""

    def remove_dataset(self) -> None:
        """Removes the sealed upload, as `remove` does."""
        self.remove(self.dataset)

    def remove(self, path: Path) -> None:
        """Removes one of its files, whatever it is, unless it is a directory: that is the operator's."""
        with suppress(OSError):
            path.unlink()

    def remove_inputs(self) -> None:
        """Removes the sealed datasets and all checkpoints, also those of a grant that was given up."""
        names = (CHECKPOINT_NAME, _MEMBER_NAME)
        found = [
            path
            for path in self.folder.iterdir()
            if any(name.fullmatch(path.name) for name in names)
        ]
        for path in (self.dataset, self.retained_dataset, *found):
            with suppress(OSError):  # such as a directory of this name: it is the operator's
                path.unlink()


def _identity(path: Path) -> FileIdentity | None:
    with suppress(FileNotFoundError):
        found = path.lstat()
        return (
            (found.st_ino, found.st_size, found.st_mtime_ns)
            if stat.S_ISREG(found.st_mode)
            else None
        )
    return None


@contextmanager
def open_ciphertext_directory(named: Path | None) -> Iterator[CiphertextDirectory]:
    """Yields the directory that the operator named, created if it is missing, or else a temporary one.

    Raises:
        UsageError: the directory cannot be used, or there is no place for a temporary one.
    """
    if named is not None:
        require_usable_directory(named)
        yield CiphertextDirectory(named.resolve(), persistent=True)  # absolute: children run in /
        return
    try:
        temporary = tempfile.TemporaryDirectory(prefix="trainer-ciphertext-")
    except OSError as error:
        raise UsageError(
            ErrorCode.USAGE,
            "there is no temporary directory for uploads and results",
            expected="a directory that can be written to: TMPDIR, /tmp or /var/tmp",
            found=error.strerror or "none",
            hint="name one with --ciphertext-dir, or mount a tmpfs at /tmp: a read-only container has none",
        ) from error
    with temporary as folder:
        yield CiphertextDirectory(Path(folder), persistent=False)
