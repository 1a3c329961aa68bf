"""Namespaces for mounts and for inter-process communication, where the process has the right to make them.

In its own mount namespace a process sees an empty directory where every user may write, and where another process
of the job keeps its files; /proc shows it no other process. What the plan allows below such a directory is mounted
there again. Without the right (CAP_SYS_ADMIN) nothing changes, and the sandbox properties say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from trainer.sandbox.syscalls import syscall

SHARED_FOLDERS: Final = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/dev/mqueue"))  # noqa: S108
"""Directories in which, as a rule, every user may create files."""

_CLONE_NEWNS, _CLONE_NEWIPC = 0x00020000, 0x08000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH: Final = 2


def leave_ipc() -> bool:
    """Enters a new IPC namespace: no System V object or POSIX queue exists there; returns whether it did."""
    try:
        syscall("unshare", _CLONE_NEWIPC)
    except OSError:
        return False
    return True


def leave_mounts(
    hidden: Iterable[Path],
    readable: Iterable[Path],
    writable: Iterable[Path],
    *,
    counters: bool,
    names_threads: bool,
) -> None:
    """Enters a new mount namespace that hides the directories of others; if a step fails, all are undone.

    Args:
        hidden: directories to cover, besides `SHARED_FOLDERS`.
        readable: files and directories that stay where they are, below a covered one to be read only.
        writable: directories that stay where they are.
        counters: whether /proc shows the machine, such as its memory, beside this process.
        names_threads: whether this process writes the names of its threads into /proc.
    """
    changed = _outermost(writable)
    kept = _outermost([*readable, *changed])
    covered = [path for path in _outermost([*SHARED_FOLDERS, *hidden]) if not _is_below(path, kept)]
    visible = [path for path in kept if _is_below(path, covered)]
    with suppress(OSError):
        syscall("unshare", _CLONE_NEWNS)
        # Otherwise the mounts below would appear in the namespace that this one was copied from.
        syscall("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        with ExitStack() as undo:
            _cover(covered, visible, undo)
            for path in visible:
                # Not if a directory below is written to: what Landlock then refuses above it stays with Landlock.
                if not any(other.is_relative_to(path) for other in changed):
                    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
                    syscall("mount", None, os.fsencode(path), None, flags, None)
            _mount_proc(undo, counters=counters, names_threads=names_threads)
            undo.pop_all()


def _mount_proc(undo: ExitStack, *, counters: bool, names_threads: bool) -> None:
    """Mounts a /proc of this process's own over the other, to be read only, as engines mount /proc/sys."""
    options = b"hidepid=ptraceable" if counters else b"hidepid=ptraceable,subset=pid"
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    syscall("mount", b"proc", b"/proc", b"proc", flags, options)
    undo.callback(_uncover, b"/proc")
    syscall("mount", None, b"/proc", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags, None)
    if names_threads:
        tasks = b"/proc/self/task"
        syscall("mount", tasks, tasks, None, _MS_BIND, None)
        syscall("mount", None, tasks, None, _MS_REMOUNT | _MS_BIND | flags, None)


def _cover(folders: list[Path], visible: list[Path], undo: ExitStack) -> None:
    """Mounts an empty tmpfs over each directory, and what stays visible below it in its place."""
    with ExitStack() as opened:
        # Opened before anything is covered: afterwards the names lead into the empty directories.
        kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in visible]
        for _, descriptor in kept:
            opened.callback(os.close, descriptor)
        for folder in folders:
            name = os.fsencode(folder)
            syscall(
                "mount", b"tmpfs", name, b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, b"mode=1777"
            )
            undo.callback(_uncover, name)
        for path, descriptor in kept:
            source = Path(f"/proc/self/fd/{descriptor}")
            _make_mount_point(path, is_folder=source.is_dir())
            syscall("mount", os.fsencode(source), os.fsencode(path), None, _MS_BIND | _MS_REC, None)


def _make_mount_point(path: Path, *, is_folder: bool) -> None:
    """Creates an empty directory or file; every user may pass through those above it."""
    mask = os.umask(0o022)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_folder:
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    finally:
        os.umask(mask)


def _uncover(name: bytes) -> None:
    with suppress(OSError):
        syscall("umount2", name, _MNT_DETACH)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Returns the existing paths that are below no other of them, resolved."""
    real = {path.resolve() for path in paths if path.exists()}
    return sorted(path for path in real if not _is_below(path, real - {path}))


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
