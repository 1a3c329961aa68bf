"""The layout of a spool directory: the files that both ends read and write, and how a file is placed in it.

Each file is written by one end:

    provider   nonce, dataset.auth, dataset.age, regrant.json, ack; in a joint job dataset-ID.auth, dataset-ID.age,
               regrant-ID.json, withdrawal-ID, ack-ID
    job        exchange.json, evidence.json, status.json, events.jsonl, result.tar.age, result.json, deletion.json

The directory may be on storage that neither end trusts. Every file except `events.jsonl` appears by a rename, so a
file that exists is complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Protocol, TypeVar

from pydantic import Field, ValidationError

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UnavailableError
from trainer.exchange.limits import MAX_STATUS_BYTES
from trainer.exchange.spool_documents import Size, SpoolResult
from trainer.models import MAX_PROVIDERS, ProviderPublicKey, Strict

NONCE_NAME: Final = "nonce"
DATASET_NAME: Final = "dataset.age"
RETAINED_DATASET_NAME: Final = "retained-dataset.age"
"""Where the job keeps a dataset from before a restart until its provider grants it again."""
REGRANT_NAME: Final = "regrant.json"
ACKNOWLEDGEMENT_NAME: Final = "ack"

JOINT_DATASET: Final = re.compile(r"dataset-[0-9a-f]{16}\.age")
JOINT_REGRANT: Final = re.compile(r"regrant-[0-9a-f]{16}\.json")
JOINT_ACKNOWLEDGEMENT: Final = re.compile(r"ack-[0-9a-f]{16}")
"""In a joint job each provider has files of its own: those of one never replace those of another."""

TERMS_NAME: Final = "exchange.json"
EVIDENCE_NAME: Final = "evidence.json"
STATUS_NAME: Final = "status.json"
EVENTS_NAME: Final = "events.jsonl"
RESULT_NAME: Final = "result.tar.age"
RESULT_INFO_NAME: Final = "result.json"
DELETION_NAME: Final = "deletion.json"

MAX_EVENTS_BYTES: Final = 64 << 20
_HEADER_BYTES: Final = 4096
_COPY_BLOCK_BYTES: Final = 1 << 20


def authorization_name(dataset: str) -> str:
    """Returns the name of the file with the authorisation of a sealed dataset that is called `dataset`."""
    return dataset.removesuffix(".age") + ".auth"


class SpoolTerms(Strict):
    """`exchange.json`: the largest dataset that the job accepts, in bytes, and from whom; empty: from anyone.

    In a `joint` job it needs one from each.
    """

    max_upload_bytes: Size
    joint: bool = False
    providers: Annotated[tuple[ProviderPublicKey, ...], Field(max_length=64)] = ()

    def dataset_name(self, sealed: BinaryIO) -> str:
        """Returns the name of a sealed dataset: in a joint job from its beginning, which no other one has."""
        if not self.joint:
            return DATASET_NAME
        header = sealed.read(_HEADER_BYTES)
        sealed.seek(0)
        return f"dataset-{sha256_hex(header)[:16]}.age"

    def regrant_name(self, document: bytes) -> str:
        """Returns the name of the file with a re-grant."""
        return f"regrant-{sha256_hex(document)[:16]}.json" if self.joint else REGRANT_NAME

    def acknowledgement_name(self, acknowledgement: str) -> str:
        """Returns the name of the file with an acknowledgement."""
        own = f"-{sha256_hex(acknowledgement.encode())[:16]}" if self.joint else ""
        return ACKNOWLEDGEMENT_NAME + own


Document = TypeVar("Document", bound=Strict)

Progress = Callable[[int], None]
"""Receives the bytes so far that the other side has; the number falls when part of a transfer is repeated."""


class SpoolFiles(Protocol):
    """The files of a spool as the provider's end uses them, wherever they lie."""

    @property
    def where(self) -> str:
        """Says where they lie, for messages."""

    def has(self, name: str) -> bool:
        """Returns whether there is a file `name`."""

    def read(self, name: str, limit: int) -> bytes | None:
        """Returns the content of a small file; None without one of at most `limit` bytes."""

    def load(self, name: str, model: type[Document]) -> Document | None:
        """Returns a JSON file as `model`; None if `read` finds none or it does not validate."""

    def put(self, name: str, data: bytes) -> None:
        """Places a small file; replaces an existing one."""

    def send_file(
        self, name: str, source: Path, state: Path | None, progress: Progress | None
    ) -> None:
        """Places a copy of `source` under a name.

        Args:
            name: in the spool.
            source: the file.
            state: file in which an interrupted transfer may keep what it needs to go on; it holds no secret.
            progress: receives the bytes copied.
        """

    def receive_file(
        self, name: str, target: Path, result: SpoolResult, progress: Progress | None
    ) -> None:
        """Copies the file `name` to `target`, which appears complete.

        Raises:
            SealingError: `result-digest-mismatch`: it is not what `result` states.
        """


def parse_document(data: bytes | None, model: type[Document]) -> Document | None:
    """Returns the JSON of a file as `model`; None without a file, or if it does not validate."""
    try:
        return None if data is None else model.model_validate_json(data)
    except ValidationError:
        return None


@dataclass(frozen=True)
class SpoolDirectory:
    """A spool directory; both ends read and place its files through this class.

    Args:
        path: the directory.
    """

    path: Path

    @property
    def where(self) -> str:
        """The path, for messages."""
        return str(self.path)

    def has(self, name: str) -> bool:
        """Returns whether there is a file `name`."""
        return self.file(name).exists()

    def file(self, name: str) -> Path:
        """Returns the path of the file `name`."""
        return self.path / name

    def read(self, name: str, limit: int) -> bytes | None:
        """Returns the content of a small file; None if it is absent, above `limit` bytes, or no regular file.

        Links are not followed and pipes are not waited for: anyone may have written to the directory.
        """
        try:
            with self.open_file(name) as file:
                data = file.read(limit + 1)  # one byte more shows that the file is above the limit
        except OSError:
            return None
        return data if len(data) <= limit else None

    def take(self, name: str, limit: int) -> bytes | None:
        """Removes the file `name` and returns what `read` gives for it: what was read is what is gone."""
        taken = f".{secrets.token_hex(8)}.taken"
        try:
            self.file(name).rename(self.file(taken))
        except FileNotFoundError:
            return None
        try:
            return self.read(taken, limit)
        finally:
            self.clear(taken)

    def clear(self, name: str) -> None:
        """Frees a name: removes the file or link, or moves the directory that somebody made there aside."""
        self.move_directory_aside(name)
        self.file(name).unlink(missing_ok=True)

    def move_directory_aside(self, name: str) -> None:
        """Renames a directory that somebody made in the place of a file: no rename can replace it."""
        path = self.file(name)
        if path.is_dir() and not path.is_symlink():
            path.rename(self.file(f".{secrets.token_hex(8)}.aside"))

    def open_file(self, name: str) -> BinaryIO:
        """Opens the regular file `name` of the directory for reading; raises OSError if it is none, or a link."""
        # Relative to a descriptor of the directory, whose path may lead elsewhere by the time of the second open.
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "a special file")
        return os.fdopen(descriptor, "rb")

    def load(self, name: str, model: type[Document]) -> Document | None:
        """Returns a JSON file as `model`; None if `read` finds none or it does not validate."""
        return parse_document(self.read(name, MAX_STATUS_BYTES), model)

    def put(self, name: str, data: bytes) -> None:
        """Places a small file by a rename; replaces an existing file of that name."""
        with self.placing(name) as file:
            file.write(data)

    def find(self, pattern: re.Pattern[str]) -> list[str]:
        """Returns the names of the pattern, in order; no more than there are providers: anyone may write more."""
        with os.scandir(self.path) as entries:
            names = (entry.name for entry in entries if pattern.fullmatch(entry.name))
            return sorted(islice(names, MAX_PROVIDERS))

    @contextmanager
    def placing(self, name: str) -> Iterator[BinaryIO]:
        """Opens a new file that becomes `name` when the block ends without an error.

        Its temporary name cannot be guessed, so that no other writer can put a link in its place.
        """
        partial = self.file(f".{secrets.token_hex(8)}.partial")
        try:
            with partial.open("xb") as file:
                yield file
                # On disk before the rename: after a crash the name must not lead to an incomplete file.
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.file(name))
        finally:
            partial.unlink(missing_ok=True)

    def send_file(
        self,
        name: str,
        source: Path,
        state: Path | None,  # noqa: ARG002
        progress: Progress | None,
    ) -> None:
        """Places a copy of `source` under a name. An interrupted copy starts again, so `state` is not used."""
        with source.open("rb") as file, self.placing(name) as target:
            _copy_and_hash(file, target, progress, limit=os.fstat(file.fileno()).st_size)

    def receive_file(
        self, name: str, target: Path, result: SpoolResult, progress: Progress | None
    ) -> None:
        """Copies the regular file `name` to `target`, atomically.

        Raises:
            OSError: the target cannot be written.
            SealingError: `result-digest-mismatch`.
            UnavailableError: there is no regular file of that name.
        """
        try:
            source = self.open_file(name)
        except OSError as error:
            where, found = f"{name} in the spool", error.strerror
            raise UnavailableError(
                ErrorCode.JOB_UNREACHABLE, where, expected="a regular file", found=found
            ) from error
        with source, SpoolDirectory(target.parent).placing(target.name) as file:
            # One byte more than announced changes the digest; whatever follows is not read.
            result.require(_copy_and_hash(source, file, progress, limit=result.size + 1))


def _copy_and_hash(
    source: BinaryIO, target: BinaryIO, progress: Progress | None, *, limit: int
) -> str:
    """Copies at most `limit` bytes of `source` to `target` in blocks and returns their SHA-256 in hex."""
    digest = hashlib.sha256()
    copied = 0
    while block := source.read(min(_COPY_BLOCK_BYTES, limit - copied)):
        target.write(block)
        digest.update(block)
        copied += len(block)
        if progress is not None:
            progress(copied)
    return digest.hexdigest()
