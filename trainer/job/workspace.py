"""The workspace: the job's private directory. It holds plaintext, so it has to be in memory (tmpfs).

The VM's memory is encrypted by the CPU. A disk is the operator's, who could copy it while the job runs.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, JobError
from trainer.job.tree_removal import remove_tree

CANDIDATES: Final = (Path("/run/trainer"), Path("/dev/shm"))  # noqa: S108 -- a tmpfs is required
"""Parent directories to try, in this order, unless the operator names one."""

_PREFIX: Final = "trainer-job-"
"""Of workspaces alone: other directories in /dev/shm may be called after this project too."""

_MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True)
class Workspace:
    """Layout of the private directory, which is removed when the job ends.

    Each try, which is one dataset with one worker, has directories of its own: nothing of a dataset that was
    refused is left where the worker of the next one reads.

    Args:
        root: the directory.
        number: which try the directories `dataset`, `output` and `scratch` are of, counted from 1.
        tries: how many tries there are directories for.
    """

    root: Path
    number: int = 1
    tries: int = 1

    def of_try(self, number: int) -> Workspace:
        """Returns the layout of another try."""
        return replace(self, number=number)

    @property
    def tries_left(self) -> int:
        """How many tries come after this one."""
        return self.tries - self.number

    @property
    def all_tries(self) -> Path:
        """The directories of all tries."""
        return self.root / "tries"

    @property
    def own(self) -> Path:
        """The directories of this try."""
        return self.all_tries / str(self.number)

    @property
    def result(self) -> Path:
        """The plaintext of the result, or failure report, while it is sealed."""
        return self.root / "result"

    @property
    def private_log(self) -> Path:
        """Log of the supervisor and the worker; sealed with the result."""
        return self.root / "job.log"

    @property
    def front_log(self) -> Path:
        """Log of the front; a file of its own, since the front must not append to a log that holds plaintext."""
        return self.root / "front.log"

    @property
    def dataset(self) -> Path:
        """The opened bundle: the dataset in plaintext."""
        return self.own / "dataset"

    @property
    def model(self) -> Path:
        """The copy of the base model whose digests were checked; the same for all tries."""
        return self.root / "model"

    @property
    def output(self) -> Path:
        """The worker's output: adapter, report, checkpoints."""
        return self.own / "output"

    @property
    def scratch(self) -> Path:
        """The worker's HOME, TMPDIR and caches."""
        return self.own / "scratch"

    def model_bytes(self) -> int:
        """Returns the size of the base model's files."""
        return sum(path.lstat().st_size for path in self.model.rglob("*"))

    def make_room(self, *, keep_output: bool) -> None:
        """Empties the directories that a failure report does not need: a full workspace may be what failed.

        Args:
            keep_output: whether part of the worker's output is sealed along with the report.
        """
        # Only the entries: the directories' modes and owners were set for the accounts.
        for folder in (
            (self.model, self.scratch) if keep_output else (self.model, self.output, self.scratch)
        ):
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    remove_tree(entry)
                else:
                    entry.unlink(missing_ok=True)


@contextmanager
def open_workspace(base: Path | None, tries: int = 1) -> Iterator[Workspace]:
    """Creates the workspace in `base`, or in the first candidate that is in memory; removes it after use.

    Workspaces of processes that were killed are removed first: they hold plaintext and use memory, and a job that
    goes on states that all of it was destroyed.

    Args:
        base: directory to create it in; None looks for one.
        tries: how many tries it has directories for.

    Raises:
        JobError: `workspace-unsafe`: no such directory is in memory, or one that was left cannot be removed.
    """
    parent = _memory_directory(base)
    _remove_abandoned(parent)
    with _locked_directory(parent) as root:
        workspace = Workspace(root, tries=tries)
        workspace.model.mkdir(mode=0o700)
        # Those of all tries: once this process is confined, it can give no directory to the worker's user.
        for number in range(1, tries + 1):
            own = workspace.of_try(number)
            for folder in (own.dataset, own.output, own.scratch):
                folder.mkdir(mode=0o700, parents=True)
        yield workspace


@contextmanager
def _locked_directory(parent: Path) -> Iterator[Path]:
    """Yields a new directory that this process has locked (flock(2)) until it ends, however it ends."""
    root = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))  # mode 0700; a random name
    # No child inherits the lock.
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The name that is looked for comes after the lock: nobody finds it without.
        root = root.rename(root.with_name(root.name.removeprefix(".")))
        yield root
    finally:
        remove_tree(root)
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    """Removes the workspaces of this user whose process has ended."""
    for root in parent.glob(f"{_PREFIX}*"):
        try:
            if root.is_symlink() or not root.is_dir() or root.stat().st_uid != os.geteuid():
                continue
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another job has just ended and removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # of a job that runs
        else:
            remove_tree(root)
            if root.exists():
                raise JobError(
                    ErrorCode.WORKSPACE_UNSAFE, f"plaintext of an earlier start is left in {root}"
                )
        finally:
            os.close(descriptor)


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
    """Returns whether files below `path` are in memory: tmpfs pages can be swapped, see `is_swap_off`."""
    return filesystem_type(path) in _MEMORY_FILESYSTEMS


def is_swap_off() -> bool:
    """Returns whether the kernel has no swap device, from /proc/swaps (proc(5)); tmpfs pages would go to one."""
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) <= 1  # the header
    except OSError:
        return False


def filesystem_type(path: Path) -> str:
    """Returns the type of the file system that holds `path`, from /proc/self/mountinfo (proc(5)), or `unknown`."""
    target = path.resolve()
    # The mount with the most path components applies; of two at one place the later one hides the earlier (>=).
    longest, kind = -1, "unknown"
    for line in (
        Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    ):
        left, _, right = line.partition(" - ")
        # Field 5 is the mount point, with blanks as octal escapes; after the separator comes the type.
        mount = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        if target.is_relative_to(mount) and len(mount.parts) >= longest:
            longest, kind = len(mount.parts), right.split(" ")[0]
    return kind
