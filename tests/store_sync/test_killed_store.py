"""A store that is killed and started again: every transfer goes on, in the same bytes. With SeaweedFS."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.exchange.stores import SeaweedServer, run_seaweed
from tests.store_sync.ends import StoreEnds
from trainer.errors import UnavailableError
from trainer.exchange import parted_file
from trainer.exchange.object_store import ObjectStore
from trainer.exchange.store_registry import open_store

PART = 256 << 10
SIZE = 12 * PART + 7
STORE = "s3://trainer/jobs/first"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


class DoomedStore:
    """A store of a server that is killed while some parts are in transfer and some have arrived.

    Args:
        server: of the store.
        store: what carries the requests out.
    """

    def __init__(self, server: SeaweedServer, store: ObjectStore) -> None:
        self.parts: list[tuple[str, str]] = []
        """Of each part that arrived: how it was transferred, and its name."""
        self._server = server
        self._store = store
        self._lock = threading.Lock()
        self._left: int | None = None

    def kill_after(self, parts: int) -> None:
        """Has the server killed when the transfer of some further parts has begun."""
        self._left = parts

    def tag(self, name: str) -> str | None:
        return self._store.tag(name)

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def get(self, name: str, limit: int) -> bytes | None:
        return self._carry("get", name, lambda: self._store.get(name, limit))

    def put(self, name: str, content: bytes) -> None:
        self._carry("put", name, lambda: self._store.put(name, content))

    def _carry(self, how: str, name: str, request: Callable[[], bytes | None]) -> bytes | None:
        if ".parts/" not in name:
            return request()
        with self._lock:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    self._server.kill()
                    self._left = None
        answer = request()
        self.parts.append((how, name))
        return answer


def until_it_is_done(
    server: SeaweedServer, work: Callable[[], None], is_done: Callable[[], bool]
) -> None:
    """Repeats work whose store was killed, on a store that was started again, as both ends of a job do."""
    failures = 0
    while not is_done():
        try:
            work()
        except UnavailableError:
            failures += 1
        if not server.is_running():
            server.start()
            server.wait_until_it_serves()
    assert failures <= 2, "it waits for the store"


@pytest.mark.slow
def test_a_store_that_is_killed_in_each_transfer_of_a_job(
    server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parted_file, "PART_BYTES", PART)
    store = DoomedStore(server, open_store(STORE, server.environment))
    ends = StoreEnds(tmp_path / "spool", store, limit=2 * SIZE)
    source, state = tmp_path / "sealed", tmp_path / "state"
    source.write_bytes(os.urandom(SIZE))

    store.kill_after(5)
    until_it_is_done(
        server,
        lambda: ends.client.upload(source, state=state),
        lambda: store.tag("dataset.age") is not None,
    )
    store.kill_after(5)
    dataset = ends.spool.file("dataset.age")
    until_it_is_done(server, ends.look, dataset.exists)
    assert dataset.read_bytes() == source.read_bytes()

    result = os.urandom(SIZE)
    digest = ends.put_result(result)
    store.kill_after(5)
    until_it_is_done(server, ends.look, lambda: store.tag("result.json") is not None)
    pulled = tmp_path / "result"
    assert ends.client.download_result(pulled, limit=SIZE) == digest
    assert pulled.read_bytes() == result
    assert len(store.parts) == len(set(store.parts)) == 4 * 13, "each part went once each time"


def authorize(dataset: bytes, *_: object) -> str:
    return dataset[:32].hex()


@pytest.mark.slow
def test_three_jobs_in_one_bucket_see_nothing_of_each_other(
    server: SeaweedServer, tmp_path: Path
) -> None:
    """Of three providers; their prefixes begin alike, and one lies below another."""
    jobs = [
        StoreEnds(tmp_path / str(number), open_store(location, server.environment))
        for number, location in enumerate(("s3://trainer/a", "s3://trainer/ab", "s3://trainer/a/b"))
    ]
    datasets, results = ([os.urandom(1000) for _ in jobs] for _ in range(2))
    for ends, dataset, result in zip(jobs, datasets, results, strict=True):
        (source := tmp_path / "sealed").write_bytes(dataset)
        ends.client.upload(source, authorize=partial(authorize, dataset))
        ends.put_result(result)
    for ends in jobs:  # the start of one removes nothing of the others
        ends.mirror.begin()
        ends.look()
    for ends, dataset, result in zip(jobs, datasets, results, strict=True):
        pulled = ends.spool.file("pulled")
        ends.client.download_result(pulled, limit=1 << 20)
        assert pulled.read_bytes() == result
        assert ends.spool.file("dataset.age").read_bytes() == dataset
        assert ends.spool.read("dataset.auth", 4096) == authorize(dataset).encode() + b"\n"
        assert len(list(ends.spool.path.iterdir())) == 5, "and what the job itself has written"
    jobs[0].spool.clear("dataset.age")
    jobs[0].look()
    assert [ends.store.tag("dataset.age") is None for ends in jobs] == [True, False, False]
