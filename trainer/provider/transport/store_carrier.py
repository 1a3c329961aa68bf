"""The carrier over an object store: the files of a spool as objects, its large ones in parts.

What holds for a spool holds here: whoever owns the store can withhold and replace objects, and what counts is
checked elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, SealingError
from trainer.exchange.limits import MAX_STATUS_BYTES
from trainer.exchange.object_store import ObjectStore
from trainer.exchange.parted_file import (
    ConfirmedParts,
    PartIndex,
    download_parts,
    read_index,
    upload_parts,
)
from trainer.exchange.spool import Document, Progress, parse_document
from trainer.exchange.spool_documents import SpoolResult
from trainer.exchange.store_registry import is_store_location, open_store
from trainer.provider.transport.carrier import CarrierKind
from trainer.provider.transport.spool_carrier import SpoolClient

_PAUSE_SECONDS: Final = 1.0
"""Between two looks at the store: requests are billed."""

_INDEX_SECONDS: Final = 60
"""How long the index of a result that was announced may take to appear."""


class StoreSpool:
    """The files of a spool in an object store.

    Args:
        store: the store.
        where: its location, for messages.
        sleep: waits for some seconds; an argument for tests.
    """

    def __init__(
        self, store: ObjectStore, where: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._store = store
        self._where = where
        self._sleep = sleep
        self._known: dict[str, tuple[str, bytes]] = {}

    @property
    def where(self) -> str:
        """The location of the store, for messages."""
        return self._where

    def has(self, name: str) -> bool:
        """Returns whether there is a file `name`."""
        return self._store.tag(name) is not None

    def read(self, name: str, limit: int) -> bytes | None:
        """Returns the content of a small file; it is transferred again only after it has changed.

        Raises:
            UnavailableError | UsageError: the store does not answer, or refuses.
        """
        tag, (known, content) = self._store.tag(name), self._known.get(name, ("", None))
        if tag is None:
            return None
        if tag != known or content is None:
            content = self._store.get(name, limit)
            if content is not None:
                self._known[name] = (tag, content)
        return content

    def load(self, name: str, model: type[Document]) -> Document | None:
        """Returns a JSON file as `model`; None if `read` finds none or it does not validate."""
        return parse_document(self.read(name, MAX_STATUS_BYTES), model)

    def put(self, name: str, data: bytes) -> None:
        """Places a small file; raises UnavailableError or UsageError if the store does not take it."""
        self._store.put(name, data)

    def send_file(
        self, name: str, source: Path, state: Path | None, progress: Progress | None
    ) -> None:
        """Uploads `source` in parts; those that `state` remembers were confirmed by the store before.

        Raises:
            UnavailableError | UsageError: the store does not take it.
        """
        upload_parts(self._store, name, source, ConfirmedParts(state), progress)

    def receive_file(
        self, name: str, target: Path, result: SpoolResult, progress: Progress | None
    ) -> None:
        """Downloads a file in parts; goes on with those that an interrupted download has left beside `target`.

        Raises:
            SealingError: `result-digest-mismatch`.
            UnavailableError | UsageError: the store does not answer, or refuses.
        """
        partial = target.with_name(f".{target.name}.partial")
        index = self._wait_for_index(name, result)
        download_parts(self._store, name, index, partial, progress, sleep=self._sleep)
        result.require(file_sha256(partial))
        partial.replace(target)

    def _wait_for_index(self, name: str, result: SpoolResult) -> PartIndex:
        """Returns the index of the announced file; a store may give that of an earlier one for a while."""
        for _ in range(_INDEX_SECONDS):
            index = read_index(self._store, name)
            if index is not None and index.size == result.size:
                return index
            self._sleep(_PAUSE_SECONDS)
        raise SealingError(
            ErrorCode.RESULT_DIGEST_MISMATCH,
            f"{name} in the object store",
            expected=f"the index of {result.size} bytes",
            found="none" if index is None else f"one of {index.size} bytes",
        )


STORE_CARRIER: Final = CarrierKind(
    location="an object store (s3://BUCKET/PREFIX)",
    serves=is_store_location,
    connect=lambda location, _pin, wait: SpoolClient(
        StoreSpool(open_store(location, os.environ), location), timeout=wait, pause=_PAUSE_SECONDS
    ),
)
