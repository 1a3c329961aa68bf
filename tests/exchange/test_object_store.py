"""The client of an object store, against SeaweedFS; what it is told and what it tells."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exchange.stores import ACCESS_KEY, SECRET_KEY, SeaweedServer, run_seaweed
from trainer.errors import ErrorCode, TrainerError, UnavailableError, UsageError
from trainer.exchange.parted_file import ConfirmedParts, download_parts, read_index, upload_parts
from trainer.exchange.store_registry import open_store

KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.mark.slow
def test_objects(server: SeaweedServer) -> None:
    store = open_store("s3://trainer/jobs/first", server.environment)
    assert store.tag("nonce") is None
    store.put("nonce", b"first")
    first = store.tag("nonce")
    store.put("nonce", b"second")
    assert first is not None
    assert store.tag("nonce") not in {None, first}
    assert (store.get("nonce", 6), store.get("nonce", 5), store.get("other", 6)) == (
        b"second",
        None,
        None,
    )
    assert open_store("s3://trainer/jobs", server.environment).get("first/nonce", 6) == b"second"
    store.delete("nonce")
    store.delete("nonce")
    assert store.get("nonce", 6) is None


@pytest.mark.slow
def test_a_file(server: SeaweedServer, tmp_path: Path) -> None:
    store = open_store("s3://trainer", server.environment)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * (9 << 12))  # 9 MiB: two parts
    upload_parts(store, "dataset.age", source, ConfirmedParts())
    index = read_index(store, "dataset.age")
    assert index is not None
    download_parts(store, "dataset.age", index, target)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"AWS_ACCESS_KEY_ID": "WRONG"}, "InvalidAccessKeyId"),
        ({"AWS_SECRET_ACCESS_KEY": "x"}, "SignatureDoesNotMatch"),
    ],
)
def test_wrong_credentials_are_refused_and_not_quoted(
    server: SeaweedServer, change: dict[str, str], code: str
) -> None:
    variables = server.environment | change
    store = open_store("s3://trainer/jobs", variables)
    with pytest.raises(UsageError) as caught:
        store.put("nonce", b"x")
    assert (caught.value.code, caught.value.found) == (ErrorCode.STORE_REFUSED, code)
    assert_not_quoted(caught.value, variables)
    for read in (lambda: store.tag("nonce"), lambda: store.get("nonce", 9)):
        with pytest.raises(UsageError):
            read()


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.exchange.s3_store._RETRY_SECONDS", 0)
    variables = {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    with pytest.raises(UnavailableError) as caught:
        open_store("s3://trainer/jobs", variables).get("nonce", 9)
    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    assert_not_quoted(caught.value, variables)


def assert_not_quoted(error: TrainerError, variables: dict[str, str]) -> None:
    assert error.__cause__ is None
    assert error.__suppress_context__
    for name in KEYS:
        if len(variables[name]) > 1:
            assert variables[name] not in f"{error!r} {error} {error.found} {error.hint}"


@pytest.mark.parametrize(
    "location",
    ["s3://", "s3://b", "s3://bucket/", "s3://bucket/../other", "s3://bucket/a//b", "s3://bucket/.a",
     "s3://bucket/a b", "s3://user:pass@bucket/a", "s3://bucket/a?x=y", "S3://bucket/a", "s3://bucket/a\n",
     "gs://bucket/a", "bucket/a"],
)  # fmt: skip
def test_locations_that_are_none(location: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(location, KEYS)
    assert caught.value.code is ErrorCode.USAGE


@pytest.mark.parametrize(
    "environment",
    [{}, {**KEYS, "AWS_SECRET_ACCESS_KEY": ""}, {**KEYS, "AWS_ACCESS_KEY_ID": "canary\r\nX-Other: b"},
     {**KEYS, "AWS_ENDPOINT_URL": "file:///canary"}, {**KEYS, "AWS_ENDPOINT_URL": "http://canary@host/x"},
     {**KEYS, "AWS_REGION": "canary/../x"}],
)  # fmt: skip
def test_variables_that_have_not_their_form(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        open_store("s3://bucket/a", environment)
    assert caught.value.code is ErrorCode.STORE_REFUSED
    assert "canary" not in f"{caught.value} {caught.value.found}"


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trainer.exchange.s3_store", None)
    with pytest.raises(UsageError) as caught:
        open_store("s3://bucket/a", KEYS)
    assert "confidential-trainer[stores]" in (caught.value.hint or "")
