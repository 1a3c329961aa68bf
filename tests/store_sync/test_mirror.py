"""The mirror of a spool in a store, with the provider's end at the store and a job's end at the spool."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.exchange.stores import MemoryStore
from tests.store_sync.ends import LIMIT, StoreEnds
from trainer.errors import ErrorCode, JobError, SealingError, UnavailableError
from trainer.exchange import parted_file, spool
from trainer.exchange.spool import DATASET_NAME, RESULT_NAME, RETAINED_DATASET_NAME, SpoolTerms
from trainer.models import Phase, Status
from trainer.store_sync.mirror import AUTHORIZATION_NAME, BROUGHT, SENT


class World(StoreEnds[MemoryStore]):
    """Both ends, with a store in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, MemoryStore())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(parted_file, "PART_BYTES", 1000)
    return World(tmp_path / "spool")


def sealed(tmp_path: Path, size: int = 2500) -> Path:
    (tmp_path / "sealed").write_bytes(os.urandom(size))
    return tmp_path / "sealed"


def test_the_whole_story(world: World, tmp_path: Path) -> None:
    nonce, evidence = "cd" * 32, b'{"claims": {"nonce": "%s"}}' % (b"cd" * 32)
    world.client._sleep = lambda _: (world.look(), world.spool.put("evidence.json", evidence))  # type: ignore[func-returns-value, assignment]
    assert world.client.attestation(nonce) == evidence
    assert world.spool.read("nonce", 128) == nonce.encode() + b"\n"

    source = sealed(tmp_path)
    world.spool.put("exchange.json", SpoolTerms(max_upload_bytes=LIMIT).model_dump_json().encode())
    world.put_status(Status(phase=Phase.AWAITING_DATASET))
    world.look()
    world.client.upload(source, authorize=lambda size, _: f"token {size}")
    assert world.client.status().phase is Phase.AWAITING_DATASET
    world.look()
    assert world.spool.file("dataset.age").read_bytes() == source.read_bytes()
    assert world.spool.read("dataset.auth", 128) == b"token 2500\n"

    digest = world.put_result(os.urandom(3500))
    world.put_status(Status(phase=Phase.AWAITING_PULL, result_bytes=3500))
    world.look()
    assert world.store.writes[-2:] == ["result.json", "status.json"], "announced when it is there"
    assert world.client.download_result(tmp_path / "result", limit=LIMIT) == digest
    assert hashlib.sha256((tmp_path / "result").read_bytes()).hexdigest() == digest
    world.spool.put("deletion.json", b"earlier")
    world.look()

    def sign_after_it(_: float) -> None:
        world.look()
        world.spool.put("deletion.json", b"signed after it")

    world.client._sleep = sign_after_it
    assert world.client.acknowledge("ac" * 32) == b"signed after it"
    assert world.spool.read("ack", 128) == b"ac" * 32 + b"\n"
    world.spool.clear("dataset.age")
    world.look()
    assert not any(name.startswith("dataset.age") for name in world.store.objects)


def test_every_file_of_a_spool_is_carried() -> None:
    names = {value for name, value in vars(spool).items() if name.endswith("_NAME")}
    own = {RETAINED_DATASET_NAME}  # the dataset under the job's own name
    assert names == {*SENT, *BROUGHT, DATASET_NAME, RESULT_NAME} - {AUTHORIZATION_NAME} | own


def test_nothing_goes_twice(world: World, tmp_path: Path) -> None:
    world.client.upload(sealed(tmp_path))
    world.put_result(b"result")
    world.put_status(Status(phase=Phase.AWAITING_PULL))
    for _ in range(3):
        world.look()
    assert world.mirror.step() is False
    assert len(world.store.writes) == len(set(world.store.writes))
    assert world.store.reads.count("dataset.age.parts/00000") == 1


def test_a_refused_dataset_makes_room_for_another_even_the_same(
    world: World, tmp_path: Path
) -> None:
    source = sealed(tmp_path)
    refusal = Status(phase=Phase.AWAITING_DATASET, error="sealed-payload-invalid")
    for _ in range(2):
        world.client.upload(source)
        world.put_status(refusal)
        world.look()
        assert world.client.status().error is None, "the job has not taken this one"
        assert world.spool.file("dataset.age").read_bytes() == source.read_bytes()
        world.spool.clear("dataset.age")
        world.look()
        assert world.client.status() == refusal


def test_an_upload_goes_on_where_the_store_died(world: World, tmp_path: Path) -> None:
    source, state = sealed(tmp_path, 9500), tmp_path / "state"
    world.store.dies_after = 6
    with pytest.raises(UnavailableError) as caught:
        world.client.upload(source, state=state)
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    world.store.dies_after = None
    world.client.upload(source, state=state)
    assert len(world.store.writes) == len(set(world.store.writes))
    world.look()
    assert world.spool.file("dataset.age").read_bytes() == source.read_bytes()


def test_the_mirror_goes_on_where_the_store_died(world: World, tmp_path: Path) -> None:
    source = sealed(tmp_path, 9500)
    world.client.upload(source)
    digest = world.put_result(os.urandom(9500))
    world.put_status(Status(phase=Phase.AWAITING_PULL))
    failures = 0
    for allowed in range(1, 40):
        world.store.dies_after = allowed
        try:
            world.look()
        except UnavailableError:
            failures += 1
    world.store.dies_after = None
    world.look()
    assert failures > 3
    assert world.spool.file("dataset.age").read_bytes() == source.read_bytes()
    assert world.client.download_result(tmp_path / "result", limit=LIMIT) == digest
    parts = [name for name in world.store.writes if ".parts/" in name]
    assert len(parts) == len(set(parts)), "each part went once"


def test_what_an_earlier_start_said_is_gone(world: World) -> None:
    world.store.objects.update(dict.fromkeys(SENT, b"earlier"))
    world.mirror.begin()
    assert world.store.objects == {}


def test_a_start_with_the_disk_of_an_earlier_one_fetches_nothing(
    world: World, tmp_path: Path
) -> None:
    source = sealed(tmp_path)
    world.client.upload(source)
    world.look()
    world.store.reads.clear()
    world.mirror = world.new_mirror()
    world.look()
    assert not any("parts" in name for name in world.store.reads)
    world.spool.clear("dataset.age")
    world.look()
    assert "dataset.age" not in world.store.objects


def test_a_dataset_that_waits_for_its_grant_is_neither_fetched_nor_removed(
    world: World, tmp_path: Path
) -> None:
    world.client.upload(sealed(tmp_path))
    world.look()
    world.mirror = world.new_mirror()  # the job is started again, and sets it aside
    world.look()
    retained, dataset = (world.spool.file(name) for name in ("retained-dataset.age", "dataset.age"))
    dataset.rename(retained)
    world.look()
    assert "dataset.age" in world.store.objects
    world.mirror = world.new_mirror()
    world.look()
    assert not dataset.exists()
    retained.rename(dataset)  # granted again
    world.look()
    dataset.unlink()
    world.look()
    assert "dataset.age" not in world.store.objects


def test_a_re_grant_is_brought_once_and_gone_once_it_is_taken(world: World) -> None:
    """What the status says of an earlier one is not taken for the verdict on it."""
    waiting = Status(phase=Phase.AWAITING_GRANT)
    refused = Status(phase=Phase.AWAITING_GRANT, error="regrant-invalid")
    world.store.put("regrant.json", b"for the start before")
    world.mirror.begin()
    world.put_status(refused)
    world.look()
    assert not world.spool.has("regrant.json")
    world.client.regrant(b"for this start")
    assert world.client.status() == waiting
    world.look()
    assert world.spool.read("regrant.json", 99) == b"for this start"
    world.look()
    assert world.client.status() == waiting, "the job has not taken it yet"
    world.spool.clear("regrant.json")
    world.put_status(Status(phase=Phase.OPENING))
    world.look()
    assert world.client.status().phase is Phase.OPENING
    assert not world.store.tag("regrant.json")
    world.client.regrant(b"for this start")  # the same one once more
    world.look()
    assert world.spool.read("regrant.json", 99) == b"for this start"


def test_a_start_with_an_empty_disk_fetches_the_dataset_again(world: World, tmp_path: Path) -> None:
    source = sealed(tmp_path)
    world.client.upload(source)
    world.look()
    world.spool.clear("dataset.age")
    world.mirror = world.new_mirror()
    world.look()
    assert world.spool.file("dataset.age").read_bytes() == source.read_bytes()


def test_a_dataset_that_the_store_exchanged_is_for_the_job_to_refuse(
    world: World, tmp_path: Path
) -> None:
    world.client.upload(sealed(tmp_path))
    world.store.objects["dataset.age.parts/00001"] = b"exchanged"
    world.look()
    found = world.spool.file("dataset.age").read_bytes()
    assert len(found) == 2500
    assert found != (tmp_path / "sealed").read_bytes()


def test_a_dataset_above_the_limit_costs_nothing(world: World, tmp_path: Path) -> None:
    source = sealed(tmp_path, LIMIT + 1)
    world.client.upload(source)
    world.look()
    assert world.spool.file("dataset.age").stat().st_size > LIMIT
    assert not any("parts" in name for name in world.store.reads)
    world.spool.put("exchange.json", SpoolTerms(max_upload_bytes=LIMIT).model_dump_json().encode())
    world.look()
    with pytest.raises(JobError):
        world.client.upload(source)


def test_a_result_that_the_store_exchanged_is_refused(world: World, tmp_path: Path) -> None:
    world.put_result(os.urandom(2500))
    world.look()
    world.store.objects["result.tar.age.parts/00002"] = b"exchanged"
    with pytest.raises(SealingError):
        world.client.download_result(tmp_path / "result", limit=LIMIT)
    assert not (tmp_path / "result").exists()


def test_a_result_of_another_job_is_refused(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    other.put_result(b"b" * 2500)
    other.look()
    world.put_result(b"a" * 2500)
    world.look()
    for name in ("result.tar.age", "result.tar.age.parts/00000", "result.tar.age.parts/00002"):
        world.store.objects[name] = other.store.objects[name]
    world.store.objects["result.tar.age.parts/00001"] = other.store.objects[
        "result.tar.age.parts/00001"
    ]
    with pytest.raises(SealingError) as caught:
        world.client.download_result(tmp_path / "result", limit=LIMIT)
    assert caught.value.code is ErrorCode.RESULT_DIGEST_MISMATCH


def test_events_are_not_sent_faster_than_their_size_allows(world: World) -> None:
    now = 0.0
    world.mirror.clock = lambda: now
    sent = []
    for second in range(9):
        now = float(second)
        world.spool.put("events.jsonl", bytes(2 << 20) + b"x" * second)
        world.look()
        sent.append(world.store.writes.count("events.jsonl"))
    assert sent[0] == 1
    assert sent[-1] <= 5


@pytest.mark.parametrize("allowed", range(1, 30))
def test_a_second_start_goes_on_where_the_first_was_killed(
    world: World, tmp_path: Path, allowed: int
) -> None:
    """Over the disk of the first, whatever the first had carried by then: each part goes once."""
    source = sealed(tmp_path, 9500)
    world.client.upload(source)
    digest = world.put_result(os.urandom(9500))
    world.put_status(Status(phase=Phase.AWAITING_PULL))
    world.store.writes.clear()
    world.store.dies_after = allowed
    with suppress(UnavailableError):
        world.look()
    world.store.dies_after = None
    world.mirror = world.new_mirror()
    world.mirror.begin()
    world.look()
    assert world.spool.file("dataset.age").read_bytes() == source.read_bytes()
    assert world.client.download_result(tmp_path / "result", limit=LIMIT) == digest
    for transfers in (
        world.store.writes,
        [name for name in world.store.reads if "dataset" in name],
    ):
        parts = [name for name in transfers if ".parts/" in name]
        assert len(parts) == len(set(parts)) == 10
