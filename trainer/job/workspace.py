"""The job's private directory: plaintext may lie here, so it must be memory (tmpfs), not a disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, JobError

CANDIDATES: Final = (Path("/run/trainer"), Path("/dev/shm"))  # noqa: S108 -- a tmpfs is what is wanted
"""Where a workspace is made unless the operator names a place."""

_MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True)
class Workspace:
    """Layout of the private directory; all of it is gone when the job ends."""

    root: Path

    @property
    def private_log(self) -> Path:
        """Supervisor's and worker's log; sealed with the result."""
        return self.root / "job.log"

    @property
    def front_log(self) -> Path:
        """Log of the network-facing process; apart, so that it shares no file with the others."""
        return self.root / "front.log"

    @property
    def dataset(self) -> Path:
        """Where the sealed bundle is opened."""
        return self.root / "dataset"

    @property
    def model(self) -> Path:
        """The checked copy of the base model."""
        return self.root / "model"

    @property
    def output(self) -> Path:
        """What the worker writes."""
        return self.root / "output"

    @property
    def scratch(self) -> Path:
        """The worker's HOME, TMPDIR and caches."""
        return self.root / "scratch"

    def make_room(self, *, keep_output: bool) -> None:
        """What failed may have filled the workspace; the report of it has to fit in, and needs none of this.

        Args:
            keep_output: whether the worker left something that goes along with the report.
        """
        for folder in (self.model, self.scratch) if keep_output else (self.model, self.output, self.scratch):
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


@contextmanager
def open_workspace(base: Path | None) -> Iterator[Workspace]:
    """Make the workspace below `base` (or the first candidate that is memory); remove it at the end.

    Raises:
        JobError: `workspace-unsafe` when no place in memory can be had.
    """
    root = Path(tempfile.mkdtemp(prefix="trainer-", dir=_memory_directory(base)))  # mode 0700
    workspace = Workspace(root)
    try:
        for folder in (workspace.dataset, workspace.model, workspace.output, workspace.scratch):
            folder.mkdir(mode=0o700)
        yield workspace
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _memory_directory(base: Path | None) -> Path:
    candidates = [base] if base else [path for path in CANDIDATES if path.is_dir()]
    for path in candidates:
        if is_memory(path):
            return path
    raise JobError(
        ErrorCode.WORKSPACE_UNSAFE,
        "the workspace would lie on a disk",
        expected="a directory on tmpfs",
        found=", ".join(f"{path} ({filesystem_type(path)})" for path in candidates) or "none",
        hint="mount a tmpfs at /run/trainer, or name one with --workspace",
    )


def is_memory(path: Path) -> bool:
    """Whether what is written below `path` stays in memory."""
    return filesystem_type(path) in _MEMORY_FILESYSTEMS


def is_swap_off() -> bool:
    """Whether the kernel has nowhere to swap to, from /proc/swaps (proc(5)): a tmpfs would go there too."""
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) <= 1
    except OSError:
        return False


def filesystem_type(path: Path) -> str:
    """Type of the file system that holds `path`, from /proc/self/mountinfo (proc(5)); `unknown` if none does."""
    target = path.resolve()
    best, kind = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        mount = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        if target.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), right.split(" ")[0]
    return kind
