"""The directory of ciphertext: what the operator's disk holds of a job. Nothing in it can be believed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ciphertext:
    """Names in the directory.

    Args:
        folder: the directory.
        lasts: whether the operator named it, so that it may still be there when the job is started again.
    """

    folder: Path
    lasts: bool

    @property
    def dataset(self) -> Path:
        """The sealed upload.

        Where the directory lasts, it stays until the job is done: one that is started again with the same derived
        key then needs nobody.
        """
        return self.folder / "dataset.age"

    @property
    def result(self) -> Path:
        """The sealed result or failure report."""
        return self.folder / "result.tar.age"


@contextmanager
def ciphertext_directory(named: Path | None) -> Iterator[Ciphertext]:
    """The directory that the operator named, made if absent, or a temporary one."""
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield Ciphertext(named.resolve(), lasts=True)  # the front has another working directory
        return
    with tempfile.TemporaryDirectory(prefix="trainer-ciphertext-") as folder:
        yield Ciphertext(Path(folder), lasts=False)
