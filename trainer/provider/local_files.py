"""Reads and writes small files on the provider's machine: identities, policies, records."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.atomic_files import PRIVATE_MODE
from trainer.errors import ErrorCode, UsageError
from trainer.provider_keys import ProviderKey, generate_provider_key, parse_provider_key
from trainer.sealing.age import Identity, generate_identity, parse_identity_file

MAX_SMALL_FILE_BYTES: Final = 64 << 20

_SECRET_LINE: Final = "# provider secret: "  # noqa: S105 -- the beginning of a line


def require_absent(path: Path) -> None:
    """Requires that an output does not exist: what is there may be the only copy of something.

    Raises:
        UsageError: `output-exists`; also of a link that leads nowhere, since nothing can be placed by its name.
    """
    if os.path.lexists(path):
        raise UsageError(ErrorCode.OUTPUT_EXISTS, f"{path} exists", hint="choose another name, or move it away")


def create_identity(path: Path, *, hybrid: bool = True) -> str:
    """Writes a new identity in age's file format, with a provider key on a comment line, mode 0600.

    age skips lines that begin with `#`, and refuses any other that is no identity. Returns the recipient.

    Args:
        path: the file.
        hybrid: whether the identity is a post-quantum hybrid (ML-KEM-768 with X25519) or X25519 alone.

    Raises:
        UsageError: the file exists; an identity is never overwritten.
    """
    identity = generate_identity(hybrid=hybrid)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    key = generate_provider_key()
    lines = (
        f"# created: {created}",
        f"# public key: {identity.recipient()}",
        f"# provider key: {key.public}",
        f"{_SECRET_LINE}{key}",
        f"{identity}",
    )
    write_private_file(path, "".join(f"{line}\n" for line in lines).encode())
    return str(identity.recipient())


def read_identities(path: Path) -> tuple[Identity, ...]:
    """Reads the identities of a file that `trainer keygen` or age-keygen made.

    Raises:
        UsageError: the file does not exist, or has no identity.
    """
    return parse_identity_file(read_small_file(path, "identity file").decode("utf-8", "replace"))


def read_provider_key(path: Path) -> ProviderKey | None:
    """Reads the provider key of an identity file; None if `trainer keygen` did not make the file.

    Raises:
        UsageError: the file does not exist, or the line is not a provider key, or there are several.
    """
    text = read_small_file(path, "identity file").decode("utf-8", "replace")
    found = [line.removeprefix(_SECRET_LINE) for line in text.splitlines() if line.startswith(_SECRET_LINE)]
    if len(found) > 1:
        raise UsageError(
            ErrorCode.IDENTITY_INVALID, f"the identity file {path}", expected="one provider key", found=len(found)
        )
    return parse_provider_key(found[0].strip()) if found else None


def write_private_file(path: Path, data: bytes) -> None:
    """Writes a new file with mode 0600.

    Raises:
        UsageError: the file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(
            ErrorCode.OUTPUT_EXISTS, f"{path} exists", hint="choose another name, or move the old file away"
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
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"cannot read the {what} {path}: {error.strerror}") from error
    except ValueError as error:
        # A name that no file can have: it contains a zero, or characters without an encoding.
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            f"cannot read the {what}: no file can have this name",
            hint="remove the zero character, or whatever has no encoding, from the name",
        ) from error
    if len(data) > limit:
        raise UsageError(
            ErrorCode.USAGE, f"the {what} {path} is too large", expected=f"at most {limit} bytes", found="more"
        )
    return data
