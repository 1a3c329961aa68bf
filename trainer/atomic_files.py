"""Files that are replaced atomically: a reader finds the old content or the new, never a part of it."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from trainer.errors import ErrorCode, UnavailableError, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PRIVATE_MODE: Final = 0o600
"""Mode of files with plaintext."""

SHARED_MODE: Final = 0o644
"""Mode of files with ciphertext, less the umask: the process that transfers them may run as another user."""


@contextmanager
def replace_atomically(target: Path, mode: int) -> Iterator[BinaryIO]:
    """Yields an unbuffered stream to a temporary file beside `target`, which replaces it when the context ends.

    After an error, the temporary file is removed and `target` is as it was.

    Raises:
        UsageError: FILE_NOT_FOUND: the directory of `target` does not exist.
        UnavailableError: STORAGE_FULL.
    """
    temporary = target.parent / f".{secrets.token_hex(8)}.partial"
    try:
        with translate_storage_errors(), create_file(temporary, mode) as file:
            yield file
            # Data before name: after a power failure the name must not point to a file without its content.
            os.fsync(file.fileno())
        temporary.replace(target)
        # The name is an entry of the directory, which has to reach the disk too.
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def translate_storage_errors() -> Iterator[None]:
    """Turns the operating system's errors that a user can act on into errors with a code and a hint.

    Raises:
        UsageError: FILE_NOT_FOUND; USAGE where a path is of the wrong kind or access is denied.
        UnavailableError: STORAGE_FULL.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND, f"no such file or directory: {error.filename}"
        ) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise UnavailableError(ErrorCode.STORAGE_FULL, "no space left on the device") from error
        if error.errno in {
            errno.EISDIR,
            errno.ENOTDIR,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ELOOP,
        }:
            raise UsageError(ErrorCode.USAGE, f"{error.filename}: {error.strerror}") from error
        raise


def open_regular_file(path: Path) -> BinaryIO:
    """Opens a file of a directory that others may write to, for reading without a buffer.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is a link, which could lead to a private file, or no regular file, such as a pipe, which would
            block.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123 -- takes a descriptor


def create_file(path: Path, mode: int) -> BinaryIO:
    """Creates a file, less the umask, and opens it for writing without a buffer.

    Raises:
        FileExistsError: there is a file or a symbolic link of that name: writing would go to what it points to.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return cast("BinaryIO", _WholeWrites(os.open(path, flags, mode), "wb"))


class _WholeWrites(io.FileIO):
    """A file without a buffer whose `write` writes everything or raises.

    A disk that becomes full takes the first part of a write and says how much that was (write(2)); only the next
    write fails. A caller that did not look would go on with a file that ends early.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            rest = rest[super().write(rest) :]
        return size


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Writes everything at an offset of a file, or raises OSError: `os.pwrite` alone may write a part only."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count
