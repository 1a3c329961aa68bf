"""Both ends of an exchange through a store: a job's spool with its mirror, and the provider's client."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Generic, TypeVar

from trainer.exchange.object_store import ObjectStore
from trainer.exchange.spool import SpoolDirectory
from trainer.exchange.spool_documents import SpoolResult
from trainer.models import Status
from trainer.provider.transport.spool_carrier import SpoolClient
from trainer.provider.transport.store_carrier import StoreSpool
from trainer.store_sync.mirror import Mirror

LIMIT = 1 << 20
Store = TypeVar("Store", bound=ObjectStore)


class StoreEnds(Generic[Store]):
    """A store, the job's spool with its mirror, and the provider's client, whose waits let the mirror look."""

    def __init__(self, folder: Path, store: Store, limit: int = LIMIT) -> None:
        folder.mkdir()
        self.store = store
        self.limit = limit
        self.spool = SpoolDirectory(folder)
        self.mirror = self.new_mirror()
        spool = StoreSpool(self.store, "s3://bucket/a", sleep=lambda _: None)
        self.client = SpoolClient(spool, timeout=5, pause=1, sleep=lambda _: self.look())
        self.looks = 0

    def new_mirror(self) -> Mirror:
        return Mirror(self.store, self.spool, self.limit, clock=lambda: 0.0, sleep=lambda _: None)

    def look(self) -> None:
        self.mirror.step()
        if self.mirror._transfer is not None:
            self.mirror._transfer.join()

    def put_status(self, status: Status) -> None:
        self.spool.put("status.json", status.model_dump_json().encode())

    def put_result(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.spool.put("result.tar.age", content)
        result = SpoolResult(size=len(content), sha256=digest)
        self.spool.put("result.json", result.model_dump_json().encode())
        return digest
