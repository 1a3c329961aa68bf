"""Files in parts: transfers go on after a break; a store loses, delays, truncates and exchanges objects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.exchange.stores import MemoryStore
from trainer.errors import ErrorCode, SealingError, UnavailableError
from trainer.exchange import parted_file
from trainer.exchange.parted_file import (
    ConfirmedParts,
    PartIndex,
    delete_parts,
    download_parts,
    read_index,
    upload_parts,
)

PART = 1000


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted_file, "PART_BYTES", PART)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(10 * PART + 7))
    return path


def fetch(store: MemoryStore, target: Path, slept: list[float] | None = None) -> bytes:
    index = read_index(store, "file")
    assert index is not None
    download_parts(
        store, "file", index, target, attempts=4, sleep=(slept if slept is not None else []).append
    )
    return target.read_bytes()


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART])
def test_there_and_back(size: int, tmp_path: Path) -> None:
    source, store, seen = tmp_path / "source", MemoryStore(), [0]
    source.write_bytes(os.urandom(size))
    upload_parts(store, "file", source, ConfirmedParts(), seen.append)
    assert seen[-1] == size
    assert fetch(store, tmp_path / "target") == source.read_bytes()
    delete_parts(store, "file")
    assert store.objects == {}


@pytest.mark.parametrize("kept_on_disk", [False, True])
def test_an_upload_sends_each_part_once_however_often_the_store_dies(
    source: Path, tmp_path: Path, kept_on_disk: bool
) -> None:
    store, state = MemoryStore(), tmp_path / "state"
    confirmed = ConfirmedParts()
    for _ in range(5):
        store.dies_after = 3  # it forgets the index, and takes two parts
        with pytest.raises(UnavailableError):
            upload_parts(
                store, "file", source, ConfirmedParts(state) if kept_on_disk else confirmed
            )
        assert read_index(MemoryStore(store.objects), "file") is None, (
            "an index before all parts are there"
        )
    store.dies_after = None
    upload_parts(store, "file", source, ConfirmedParts(state) if kept_on_disk else confirmed)
    assert len(store.writes) == len(set(store.writes)) == 12
    assert fetch(store, tmp_path / "target") == source.read_bytes()


def test_a_file_that_was_complete_is_sent_again(source: Path, tmp_path: Path) -> None:
    """The reader has removed it since, or another file has replaced its parts."""
    store, state = MemoryStore(), tmp_path / "state"
    upload_parts(store, "file", source, ConfirmedParts(state))
    store.objects.clear()
    upload_parts(store, "file", source, ConfirmedParts(state))
    assert fetch(store, tmp_path / "target") == source.read_bytes()
    assert not state.exists()


def test_what_was_confirmed_of_another_file_is_sent(source: Path, tmp_path: Path) -> None:
    store, confirmed = MemoryStore(), ConfirmedParts()
    upload_parts(store, "file", source, confirmed)
    source.write_bytes(os.urandom(2 * PART))
    upload_parts(store, "file", source, confirmed)
    assert fetch(store, tmp_path / "target") == source.read_bytes()


def test_a_download_asks_for_each_part_once_however_often_the_store_dies(
    source: Path, tmp_path: Path
) -> None:
    store, target = MemoryStore(), tmp_path / "target"
    upload_parts(store, "file", source, ConfirmedParts())
    index = read_index(store, "file")
    assert index is not None
    store.reads.clear()
    for _ in range(4):
        store.dies_after = 2
        with pytest.raises(UnavailableError):
            download_parts(store, "file", index, target)
    store.dies_after = None
    download_parts(store, "file", index, target)
    assert len(store.reads) == len(set(store.reads)) == 11
    assert target.read_bytes() == source.read_bytes()


def test_objects_that_come_late_are_waited_for(source: Path, tmp_path: Path) -> None:
    store, slept = MemoryStore(), list[float]()
    upload_parts(store, "file", source, ConfirmedParts())
    earlier = os.urandom(PART)
    store.lies = {
        "file.parts/00003": [None, None],
        "file.parts/00004": [earlier],
        "file.parts/00005": [b"", b"x"],
    }
    assert fetch(store, tmp_path / "target", slept) == source.read_bytes()
    assert sorted(slept) == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("content", [None, b"", b"exchanged", bytes(PART), bytes(PART + 1)])
def test_a_part_that_stays_wrong_is_refused(
    source: Path, tmp_path: Path, content: bytes | None
) -> None:
    store = MemoryStore()
    upload_parts(store, "file", source, ConfirmedParts())
    store.lies = {"file.parts/00003": [content] * 9}
    with pytest.raises(SealingError) as caught:
        fetch(store, tmp_path / "target")
    assert caught.value.code is ErrorCode.RESULT_DIGEST_MISMATCH


def test_parts_that_change_places_are_refused(source: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    upload_parts(store, "file", source, ConfirmedParts())
    first, second = "file.parts/00001", "file.parts/00002"
    store.objects[first], store.objects[second] = store.objects[second], store.objects[first]
    with pytest.raises(SealingError):
        fetch(store, tmp_path / "target")


@pytest.mark.parametrize(
    "index",
    [b"", b"{}", b"[]", b'{"parts": [], "size": 1}', b'{"parts": [], "size": -1}', b'{"parts": ["x"], "size": 1}',
     b'{"parts": [], "size": 0, "more": 1}', b'{"parts": [], "size": 1e9}'],
)  # fmt: skip
def test_an_index_that_is_none(index: bytes) -> None:
    assert read_index(MemoryStore({"file": index}), "file") is None


def test_a_link_in_the_place_of_the_target_is_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").symlink_to(source)
    with pytest.raises(OSError, match="symbolic links"):
        download_parts(MemoryStore(), "file", PartIndex(size=0, parts=()), tmp_path / "target")
