"""The ciphertext directory: the files of a job that lie on the operator's disk.

The operator can change every byte in it. Each file is authenticated when it is opened, not when it is found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
        it again, so the provider need not upload twice.
        """
        return self.folder / "dataset.age"

    @property
    def result(self) -> Path:
        """The sealed result or failure report."""
        return self.folder / "result.tar.age"


@contextmanager
def open_ciphertext_directory(named: Path | None) -> Iterator[CiphertextDirectory]:
    """Yields the directory that the operator named, created if it is missing, or else a temporary one."""
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield CiphertextDirectory(named.resolve(), persistent=True)  # absolute: children run in /
        return
    with tempfile.TemporaryDirectory(prefix="trainer-ciphertext-") as folder:
        yield CiphertextDirectory(Path(folder), persistent=False)
