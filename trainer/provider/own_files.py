"""Files that this user's tool wrote on this machine, distinguished from all others by an authentication tag.

A work directory or a saved record may have come with a folder from somebody else, and what it says decides where
data goes. A tag is an HMAC under a random secret in this user's own state directory. Nobody else can make one, so
what bears it was written here. Tags bind a purpose too: for the files of a directory, its path and their names.
"""

from __future__ import annotations

import glob
import hmac
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from trainer.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.encoding import canonical_json, parse_json
from trainer.errors import ErrorCode, UsageError, VerificationError
from trainer.provider.local_files import MAX_SMALL_FILE_BYTES, lock_exclusively

SECRET_BYTES: Final = 32
_DOMAIN: Final = b"confidential-trainer/own-files/v1"
_DIRECTORY_MODE: Final = 0o700


class LocalSecret:
    """The secret of this user on this machine; the file is made at the first use.

    Args:
        path: the file, in the user's state directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def key_for(self, *purpose: str) -> bytes:
        """Returns the key of one purpose: HMAC-SHA256 over the domain and the parts, each ended by a zero byte.

        Raises:
            UsageError: the file cannot be read or made, or others have access to it.
        """
        message = b"".join(part.encode(errors="surrogateescape") + b"\0" for part in purpose)
        return hmac.digest(self._load(), _DOMAIN + b"\0" + message, "sha256")

    def _load(self) -> bytes:
        try:
            self._path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            with lock_exclusively(self._path.with_name(self._path.name + ".lock")):
                if not os.path.lexists(self._path):
                    with replace_atomically(self._path, PRIVATE_MODE) as file:
                        file.write(secrets.token_bytes(SECRET_BYTES))
                return self._read()
        except OSError as error:
            raise self._unusable(str(error.strerror)) from error

    def _read(self) -> bytes:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if (
                not stat.S_ISREG(state.st_mode)
                or state.st_uid != os.geteuid()
                or state.st_mode & 0o077
            ):
                raise self._unusable(
                    f"mode {stat.S_IMODE(state.st_mode):04o} of user {state.st_uid}"
                )
            data = file.read(SECRET_BYTES + 1)
        if len(data) != SECRET_BYTES:
            raise self._unusable(f"{len(data)} bytes")
        return data

    def _unusable(self, found: str) -> UsageError:
        return UsageError(
            ErrorCode.USAGE,
            f"the secret of this user, {self._path}",
            expected=f"a file of {SECRET_BYTES} bytes that only you can read",
            found=found,
            hint="it authenticates what this tool keeps; XDG_STATE_HOME names another directory for it",
        )


def add_tag(document: bytes, key: bytes) -> bytes:
    """Returns a JSON object with its tag as one more key, in canonical form.

    Args:
        document: canonical JSON of an object without the key `tag`.
        key: key of the purpose.
    """
    value = cast("dict[str, object]", parse_json(document))
    return canonical_json({**value, "tag": hmac.digest(key, document, "sha256").hex()})


def check_tag(data: bytes, key: bytes) -> bytes | None:
    """Returns the canonical JSON of an object without its tag; None if it is not this key's."""
    try:
        value = parse_json(data)
        if not isinstance(value, dict):
            return None
        tag = value.pop("tag", None)
        document = canonical_json(value)
    except (ValueError, UsageError):
        return None
    expected = hmac.digest(key, document, "sha256").hex()
    return (
        document
        if isinstance(tag, str) and hmac.compare_digest(tag.encode(), expected.encode())
        else None
    )


class OwnDirectory:
    """A private directory that this tool made for this user: its owner, mode and tags say so.

    Args:
        path: the directory.
        secret: of this user.
    """

    def __init__(self, path: Path, secret: LocalSecret) -> None:
        self.path = path
        self._secret = secret
        # The place is part of each key: a copy of a directory elsewhere is not this one.
        self._place = str(path.parent.resolve() / path.name)

    def create(self, documents: Mapping[str, bytes]) -> None:
        """Makes the directory with its first documents: it appears complete, by one rename.

        Raises:
            UsageError: something of this name exists.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(
            tempfile.mkdtemp(prefix=f".{self.path.name}-", suffix=".partial", dir=self.path.parent)
        )
        try:
            for name, document in documents.items():
                _write(partial / name, add_tag(document, self._key_for(name)))
            self.require_absent()
            partial.rename(self.path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def remove(self) -> None:
        """Removes the directory, which disappears complete, by one rename; and what killed calls left of it."""
        pattern = f".{glob.escape(self.path.name)}-*.partial"
        self.path.rename(self.path.with_name(f".{self.path.name}-{secrets.token_hex(8)}.partial"))
        for rest in self.path.parent.glob(pattern):
            shutil.rmtree(rest, ignore_errors=True)

    def require_absent(self) -> None:
        """Requires that there is nothing of this name.

        Raises:
            UsageError: there is.
        """
        if os.path.lexists(self.path):
            raise self._foreign("a file or directory that it did not make")

    def require_own(self) -> None:
        """Requires that the directory is this user's alone, and contains nothing but files and directories.

        Raises:
            UsageError: another owner or mode, or a link in it.
        """
        state = self.path.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
            raise self._foreign("a link, a file, or a directory of another user")
        # Permissions alone: below a directory that a group shares, new ones inherit the set-group-ID bit.
        if state.st_mode & 0o777 != _DIRECTORY_MODE:
            raise self._foreign(f"mode {stat.S_IMODE(state.st_mode):04o}")
        with os.scandir(self.path) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise self._foreign(f"{entry.name}, a link or special file, in it")

    def has(self, name: str) -> bool:
        """Returns whether there is something of this name in the directory."""
        return os.path.lexists(self.path / name)

    def write(self, name: str, document: bytes) -> None:
        """Writes the canonical JSON of an object with its tag; replaces an earlier one."""
        _write(self.path / name, add_tag(document, self._key_for(name)))

    def read(self, name: str) -> bytes:
        """Returns the canonical JSON of a document that `write` wrote under this name.

        Raises:
            VerificationError: it was not written here, or was changed since.
        """
        document = check_tag(_read(self.path / name), self._key_for(name))
        if document is None:
            raise VerificationError(
                ErrorCode.VERIFICATION_FAILED,
                f"{self.path / name} is not of this tool on this machine",
                expected="what it wrote here for this user",
                found="something else",
                hint=f"do not use it; move {self.path} away and repeat the command",
            )
        return document

    def _key_for(self, name: str) -> bytes:
        return self._secret.key_for("directory", self._place, name)

    def _foreign(self, found: str) -> UsageError:
        return UsageError(
            ErrorCode.OUTPUT_EXISTS,
            f"{self.path} is needed for the work of this command",
            expected=f"nothing there, or what it made here, of mode {_DIRECTORY_MODE:04o}, without links",
            found=found,
            hint="move it away, or choose another name with -o",
        )


def _write(path: Path, data: bytes) -> None:
    """Writes a private file that exists either complete or not at all."""
    with replace_atomically(path, PRIVATE_MODE) as file:
        file.write(data)


def _read(path: Path) -> bytes:
    """Returns the content of a regular file; nothing of a larger one, which no tag fits."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_SMALL_FILE_BYTES + 1)
    return data if len(data) <= MAX_SMALL_FILE_BYTES else b""
