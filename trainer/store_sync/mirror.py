"""Keeps the spool of a job and its object store in step, so that neither end knows of the other.

    store → spool   nonce, dataset.auth, dataset.age (in parts), regrant.json, ack
    spool → store   result.tar.age (in parts), then result.json, then the other files that the job writes

A file is sent again when it has changed, and an object of the job's is removed with its file. Of the provider's
objects dataset and re-grant alone are removed, once the job has no more use for them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, SealingError, TrainerError
from trainer.exchange.limits import MAX_DELETION_BYTES, MAX_EVIDENCE_ANSWER_BYTES, MAX_STATUS_BYTES
from trainer.exchange.object_store import ObjectStore
from trainer.exchange.parted_file import (
    ConfirmedParts,
    PartIndex,
    delete_parts,
    download_parts,
    is_complete,
    read_index,
    upload_parts,
)
from trainer.exchange.signed_token import MAX_TOKEN_BYTES
from trainer.exchange.spool import (
    ACKNOWLEDGEMENT_NAME,
    DATASET_NAME,
    DELETION_NAME,
    EVENTS_NAME,
    EVIDENCE_NAME,
    MAX_EVENTS_BYTES,
    NONCE_NAME,
    REGRANT_NAME,
    RESULT_INFO_NAME,
    RESULT_NAME,
    RETAINED_DATASET_NAME,
    STATUS_NAME,
    TERMS_NAME,
    SpoolDirectory,
    authorization_name,
)
from trainer.logs import log_error
from trainer.models import MAX_REGRANT_BYTES

AUTHORIZATION_NAME: Final = authorization_name(DATASET_NAME)

BROUGHT: Final = {
    NONCE_NAME: 128,
    AUTHORIZATION_NAME: MAX_TOKEN_BYTES,
    REGRANT_NAME: MAX_REGRANT_BYTES,
    ACKNOWLEDGEMENT_NAME: 128,
}
"""Small files that the provider writes, each with its largest size in bytes."""

SENT: Final = {
    TERMS_NAME: MAX_STATUS_BYTES * 4,
    EVIDENCE_NAME: MAX_EVIDENCE_ANSWER_BYTES,
    EVENTS_NAME: MAX_EVENTS_BYTES,
    DELETION_NAME: MAX_DELETION_BYTES,
    RESULT_INFO_NAME: MAX_STATUS_BYTES,
    STATUS_NAME: MAX_STATUS_BYTES,
}
"""Small files that the job writes, in the order in which they are sent: a status comes after what it announces."""

_EVENT_BYTES_PER_SECOND: Final = 1 << 20
"""The file of events grows and goes whole each time: this bounds what that costs."""

PARTIAL_DATASET_NAME: Final = ".dataset.store-partial"
CONFIRMED_PARTS_NAME: Final = ".result.store-parts"
"""What an interrupted transfer leaves in the spool for the next start of the job."""

Version = tuple[int, int, int]
"""Inode, time of change and size of a file: another one is another content."""


@dataclass
class Mirror:
    """One spool and one store.

    Args:
        store: the store.
        spool: the spool directory of the job.
        max_upload_bytes: the largest sealed dataset that is fetched.
        clock: seconds of a monotonic clock.
        sleep: waits for some seconds.
    """

    store: ObjectStore
    spool: SpoolDirectory
    max_upload_bytes: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _sent: dict[str, Version] = field(default_factory=dict, init=False)
    _brought: dict[str, str] = field(default_factory=dict, init=False)
    _confirmed: ConfirmedParts = field(init=False)
    _events_after: float = field(default=0.0, init=False)
    _taken: str | None = field(default=None, init=False)
    _transfer: threading.Thread | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._confirmed = ConfirmedParts(self.spool.file(CONFIRMED_PARTS_NAME))

    def begin(self) -> None:
        """Removes what is about an earlier start of the job from the store: its answers, and a re-grant for it.

        Raises:
            UnavailableError | UsageError: the store does not answer, or refuses.
        """
        for name in (*SENT, REGRANT_NAME):
            self.store.delete(name)

    def step(self) -> bool:
        """Carries in both directions what has changed; returns whether it carried anything.

        Raises:
            UnavailableError | UsageError: the store does not answer, or refuses; the next call goes on.
            OSError: the spool cannot be read or written.
        """
        # Before a status tells the provider that another one is expected.
        removed = self._remove_taken_dataset()
        # Looked for before the status is read, which says nothing of an earlier re-grant once one is taken, and
        # removed after that was sent: else the provider takes a verdict on the earlier one for that on this.
        taken = REGRANT_NAME in self._brought and not self.spool.has(REGRANT_NAME)
        sent = [self._send(name) for name in SENT]
        # The provider may have sent another since.
        if taken and self.store.tag(REGRANT_NAME) == self._brought.pop(REGRANT_NAME):
            self.store.delete(REGRANT_NAME)
        brought = [self._bring(name) for name in BROUGHT]
        self._look_for_dataset()
        return removed or taken or any(sent) or any(brought)

    def _version(self, name: str) -> Version | None:
        try:
            found = self.spool.file(name).lstat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _send(self, name: str) -> bool:
        version = self._version(name)
        if version == self._sent.get(name) or (
            name == EVENTS_NAME and self.clock() < self._events_after
        ):
            return False
        if version is None:
            self.store.delete(name)
            del self._sent[name]
            return True
        content = self.spool.read(name, SENT[name])
        if content is None:
            return False
        if name == RESULT_INFO_NAME:
            result, index = self.spool.file(RESULT_NAME), read_index(self.store, RESULT_NAME)
            # An earlier start may have sent it.
            if index is None or not is_complete(result, index):
                upload_parts(self.store, RESULT_NAME, result, self._confirmed)
        self.store.put(name, content)
        if name == EVENTS_NAME:
            self._events_after = self.clock() + len(content) / _EVENT_BYTES_PER_SECOND
        self._sent[name] = version
        return True

    def _bring(self, name: str) -> bool:
        tag = self.store.tag(name)
        if tag is None or tag == self._brought.get(name):
            return False
        content = self.store.get(name, BROUGHT[name])
        if content is not None:
            self.spool.put(name, content)
        self._brought[name] = tag
        return content is not None

    def _look_for_dataset(self) -> None:
        """Begins to fetch a dataset that the store has and the job has not had, in a thread: it may take hours."""
        if self._transfer is not None and self._transfer.is_alive():
            return
        if (tag := self.store.tag(DATASET_NAME)) is None:
            # The same dataset, uploaded again, has the same tag.
            self._brought.pop(DATASET_NAME, None)
            return
        if (
            tag != self._brought.get(DATASET_NAME)
            and (index := read_index(self.store, DATASET_NAME)) is not None
        ):
            self._transfer = threading.Thread(
                target=self._fetch_dataset, args=(tag, index), daemon=True
            )
            self._transfer.start()

    def _fetch_dataset(self, tag: str, index: PartIndex) -> None:
        partial, dataset = self.spool.file(PARTIAL_DATASET_NAME), self.spool.file(DATASET_NAME)
        retained = (dataset, self.spool.file(RETAINED_DATASET_NAME))
        try:
            # One is complete after a restart with a disk that was kept.
            if not any(is_complete(path, index) for path in retained):
                self._place_dataset(index, partial, dataset)
            self._taken = self._brought[DATASET_NAME] = tag
        except (TrainerError, OSError) as error:
            log_error(
                "a dataset did not arrive from the object store; the next look goes on", error
            )

    def _place_dataset(self, index: PartIndex, partial: Path, dataset: Path) -> None:
        if index.size > self.max_upload_bytes:
            _make_sparse(partial, self.max_upload_bytes + 1)  # the front refuses it by its size
        else:
            self._download(index)
        self._bring(AUTHORIZATION_NAME)  # the one for this dataset: it was there first
        partial.replace(dataset)

    def _download(self, index: PartIndex) -> None:
        target = self.spool.file(PARTIAL_DATASET_NAME)
        try:
            download_parts(self.store, DATASET_NAME, index, target, sleep=self.sleep)
        except SealingError as error:
            # What the store gives instead does not open either, and then the job says so in public.
            log_error("the object store does not have the dataset that its index states", error)

    def _remove_taken_dataset(self) -> bool:
        """Removes the dataset from the store, if the job has removed its own copy; returns whether it did.

        A newer one stays: the provider writes it under the same name.
        """
        is_retained = self.spool.has(DATASET_NAME) or self.spool.has(RETAINED_DATASET_NAME)
        if self._taken is None or is_retained:
            return False
        if self.store.tag(DATASET_NAME) == self._taken:
            delete_parts(self.store, DATASET_NAME)
        self._taken = None
        self._brought.pop(DATASET_NAME, None)
        return True


def _make_sparse(path: Path, size: int) -> None:
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def is_refusal(error: TrainerError) -> bool:
    """Returns whether a store refuses for good: trying again does not help."""
    return error.code is ErrorCode.STORE_REFUSED
