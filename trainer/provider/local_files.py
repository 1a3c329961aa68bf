"""Reads and writes small files on the provider's machine: policies, grants, records."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.atomic_files import PRIVATE_MODE
from trainer.errors import ErrorCode, UsageError

MAX_SMALL_FILE_BYTES: Final = 64 << 20


def require_absent(path: Path) -> None:
    """Requires that an output does not exist: what is there may be the only copy of something.

    Raises:
        UsageError: `output-exists`; also of a link that leads nowhere, since nothing can be placed by its name.
    """
    if os.path.lexists(path):
        raise UsageError(
            ErrorCode.OUTPUT_EXISTS, f"{path} exists", hint="choose another name, or move it away"
        )


def write_private_file(path: Path, data: bytes) -> None:
    """Writes a new file with mode 0600.

    Raises:
        UsageError: the file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(
            ErrorCode.OUTPUT_EXISTS,
            f"{path} exists",
            hint="choose another name, or move the old file away",
        ) from None
    except OSError as error:
        raise UsageError(ErrorCode.USAGE, f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def write_beside(path: Path, data: bytes) -> Path:
    """Writes a new file with mode 0600 and returns its path, which is `NAME-2`, `NAME-3` … if others exist."""
    for number in itertools.count(1):
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(target):
            write_private_file(target, data)
            return target
        if target.is_file() and target.read_bytes() == data:
            return target
    raise AssertionError("itertools.count ended")


@contextmanager
def lock_exclusively(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, which is created if absent."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_text_file(path: Path, what: str) -> str:
    """Returns the text of a small file with its line ends unchanged, so that its exact bytes can be hashed.

    Args:
        path: the file.
        what: description of the file in errors.

    Raises:
        UsageError: as `read_small_file`, or the file is not UTF-8.
    """
    try:
        return read_small_file(path, what).decode()
    except UnicodeDecodeError:
        raise UsageError(
            ErrorCode.USAGE, f"the {what} {path}", expected="UTF-8 text", found="other bytes"
        ) from None


def read_small_file(path: Path, what: str, limit: int = MAX_SMALL_FILE_BYTES) -> bytes:
    """Returns the content of a file that is expected to be small.

    Args:
        path: the file.
        what: description of the file in errors.
        limit: largest size in bytes.

    Raises:
        UsageError: the file cannot be read, or is larger than `limit`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND, f"cannot read the {what} {path}: {error.strerror}"
        ) from error
    except ValueError as error:
        # A name that no file can have: it contains a zero, or characters without an encoding.
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            f"cannot read the {what}: no file can have this name",
            hint="remove the zero character, or whatever has no encoding, from the name",
        ) from error
    if len(data) > limit:
        raise UsageError(
            ErrorCode.USAGE,
            f"the {what} {path} is too large",
            expected=f"at most {limit} bytes",
            found="more",
        )
    return data
