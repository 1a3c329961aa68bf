"""A large file in an object store: parts of 8 MiB, and an index with the digest of each, written last.

    NAME                the index: {"parts": [SHA-256 of each part, in hex, ...], "size": bytes of the file}
    NAME.parts/00000    the first part, and so on; all but the last have `PART_BYTES`

Parts are transferred side by side, and one that fails is repeated alone. An interrupted transfer goes on with the
parts that are missing: a download hashes what it has, an upload remembers what the store has confirmed. Nothing is
listed: some stores list an object only some time after it can be read.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import Field, ValidationError

from trainer.atomic_files import write_at
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, SealingError
from trainer.exchange.object_store import ObjectStore
from trainer.exchange.spool import Progress
from trainer.models import Sha256Hex, Strict

PART_BYTES: Final = 8 << 20
MAX_PARTS: Final = 1 << 17
"""1 TiB in parts of 8 MiB."""

_MAX_INDEX_BYTES: Final = MAX_PARTS * 68 + 256
_PARALLEL: Final = 4
"""Parts in transfer at one time, each in memory."""

_ATTEMPTS: Final = 7
"""How often a part is asked for while it is missing or wrong, after 1, 2, 4 … seconds: about a minute in all."""

Result = TypeVar("Result")


class PartIndex(Strict):
    """The index of a file in parts.

    Attributes:
        size: of the file, in bytes.
        parts: digest of each part.
    """

    size: Annotated[int, Field(ge=0, le=MAX_PARTS * PART_BYTES)]
    parts: Annotated[tuple[Sha256Hex, ...], Field(max_length=MAX_PARTS)]


@dataclass
class ConfirmedParts:
    """Which parts the store has confirmed, so that an upload that is repeated leaves them out.

    Args:
        path: file that remembers it; None remembers it in memory.
    """

    path: Path | None = None
    _known: set[str] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.is_file():
            self._known.update(self.path.read_text("ascii", "replace").splitlines())

    def has(self, number: int, digest: str) -> bool:
        """Returns whether the store has confirmed this part with this content."""
        return f"{number} {digest}" in self._known

    def add(self, number: int, digest: str) -> None:
        """Remembers that the store has confirmed a part; in memory alone, where the disk is full."""
        with self._lock:
            self._known.add(line := f"{number} {digest}")
            if self.path is not None:
                with suppress(OSError), self.path.open("a", encoding="ascii") as file:
                    file.write(line + "\n")

    def forget(self) -> None:
        """Forgets all parts: the upload is complete, and the store may lose or replace them from now on."""
        self._known.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def part_name(name: str, number: int) -> str:
    """Returns the name of the object with a part of the file `name`."""
    return f"{name}.parts/{number:05d}"


def upload_parts(
    store: ObjectStore,
    name: str,
    path: Path,
    confirmed: ConfirmedParts,
    progress: Progress | None = None,
) -> None:
    """Uploads a file in parts, and its index once all of them are there.

    Raises:
        OSError: the file cannot be read.
        UnavailableError | UsageError: the store does not take it; `confirmed` has what it took.
    """
    store.delete(name)  # first: no reader takes an earlier index for one of these parts
    count = _Count(progress)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size

        def send(number: int) -> str:
            content = os.pread(descriptor, PART_BYTES, number * PART_BYTES)
            if not confirmed.has(number, digest := sha256_hex(content)):
                store.put(part_name(name, number), content)
                confirmed.add(number, digest)
            count.add(len(content))
            return digest

        parts = _side_by_side(send, range(_count_parts(size)))
    finally:
        os.close(descriptor)
    store.put(name, canonical_json({"parts": parts, "size": size}))
    confirmed.forget()


def read_index(store: ObjectStore, name: str) -> PartIndex | None:
    """Returns the index of a file in parts; None without a valid one."""
    content = store.get(name, _MAX_INDEX_BYTES)
    try:
        index = PartIndex.model_validate_json(content or b"")
    except ValidationError:
        return None
    return index if len(index.parts) == _count_parts(index.size) else None


def download_parts(
    store: ObjectStore,
    name: str,
    index: PartIndex,
    target: Path,
    progress: Progress | None = None,
    *,
    attempts: int = _ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fills `target` with a file in parts; keeps the parts that an earlier attempt has left there.

    Raises:
        OSError: the target cannot be written.
        SealingError: `result-digest-mismatch`: the store gives other bytes than the index states.
        UnavailableError | UsageError: the store does not answer; `target` has what arrived.
    """
    count = _Count(progress)
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        is_new = os.fstat(descriptor).st_size == 0
        os.ftruncate(descriptor, index.size)

        def receive(number: int) -> None:
            offset = number * PART_BYTES
            length = min(PART_BYTES, index.size - offset)
            if is_new or sha256_hex(os.pread(descriptor, length, offset)) != index.parts[number]:
                content = _get_part(
                    store, part_name(name, number), index.parts[number], attempts, sleep
                )
                write_at(descriptor, content, offset)
            count.add(length)

        _side_by_side(receive, range(len(index.parts)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_complete(path: Path, index: PartIndex) -> bool:
    """Returns whether a file is there and is the one that an index describes."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != index.size:
                return False
            return all(sha256_hex(file.read(PART_BYTES)) == digest for digest in index.parts)
    except FileNotFoundError:
        return False


def delete_parts(store: ObjectStore, name: str) -> None:
    """Removes a file in parts: its index first."""
    index = read_index(store, name)
    store.delete(name)
    if index is not None:
        _side_by_side(lambda number: store.delete(part_name(name, number)), range(len(index.parts)))


def _get_part(
    store: ObjectStore, name: str, digest: str, attempts: int, sleep: Callable[[float], None]
) -> bytes:
    """Returns a part; asks again while it is missing or wrong: a store may give an earlier object for a while."""
    for attempt in range(attempts):
        if attempt:
            sleep(2.0 ** (attempt - 1))
        content = store.get(name, PART_BYTES)
        if content is not None and sha256_hex(content) == digest:
            return content
    raise SealingError(
        ErrorCode.RESULT_DIGEST_MISMATCH,
        f"{name} in the object store",
        expected=digest,
        found="nothing" if content is None else sha256_hex(content),
        hint="the store lost or exchanged it: transfer the file again",
    )


def _count_parts(size: int) -> int:
    return -(-size // PART_BYTES)


def _side_by_side(work: Callable[[int], Result], numbers: Iterable[int]) -> list[Result]:
    """Returns the results of `work` in order; after the first error nothing further begins."""
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="parts")
    try:
        return list(pool.map(work, numbers))
    finally:
        pool.shutdown(cancel_futures=True)


class _Count:
    """Adds up bytes of several threads."""

    def __init__(self, report: Progress | None) -> None:
        self._report = report
        self._done = 0
        self._lock = threading.Lock()

    def add(self, length: int) -> None:
        with self._lock:
            self._done += length
            if self._report is not None:
                self._report(self._done)
