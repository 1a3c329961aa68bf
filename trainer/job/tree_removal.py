"""Removal of directories that a process which may have been taken over wrote."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def remove_tree(path: Path | str, *, dir_fd: int | None = None) -> None:
    """Removes a directory with everything in it, however deep it is nested.

    What cannot be removed stays, without an error: whoever relies on it looks.

    Args:
        path: the directory; a link is not followed.
        dir_fd: descriptor of the directory that `path` is relative to.
    """
    try:
        shutil.rmtree(path, ignore_errors=True, dir_fd=dir_fd)
    except RecursionError:  # it calls itself for each level, and a worker can make thousands
        with suppress(OSError), _opened(path, dir_fd) as top:
            _remove_entries(top)
        with suppress(OSError):
            os.rmdir(path, dir_fd=dir_fd)


def _remove_entries(top: int) -> None:
    """Removes what is in the directory `top`; each directory in it moves up to `top` first, so no path is long."""
    folders = ["."]
    for folder in folders:  # grows while it is read
        with suppress(OSError), _opened(folder, top) as opened, os.scandir(opened) as entries:
            for entry in list(entries):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        moved = secrets.token_hex(16)
                        os.rename(entry.name, moved, src_dir_fd=opened, dst_dir_fd=top)
                        folders.append(moved)
                    else:
                        os.unlink(entry.name, dir_fd=opened)
    for folder in reversed(folders[1:]):
        with suppress(OSError):
            os.rmdir(folder, dir_fd=top)


@contextmanager
def _opened(path: Path | str, dir_fd: int | None) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
