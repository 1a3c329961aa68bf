"""Downloads end: announced sizes are compared first, endless bodies and retries stop, links are not followed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, TrainerError, UnavailableError, UsageError
from trainer.exchange.spool import SpoolDirectory
from trainer.models import Phase, Status
from trainer.provider.transport.carrier import require_result_size
from trainer.provider.transport.downloading import ResultDownloader
from trainer.provider.transport.event_stream import EventStreamReader
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy
from trainer.provider.transport.spool_carrier import SpoolClient
from trainer.provider.transport.uploading import UploadState

LIMIT = 1000
DIGEST = "ab" * 32


class Server:
    """A `PinnedHttpClient` whose answers a test gives: each a function of the request's headers."""

    def __init__(self, answer: Callable[[httpx.Headers], httpx.Response]) -> None:
        self._answer = answer
        self.requests = 0

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, *, headers: Any = None, accept: Any = None
    ) -> Iterator[httpx.Response]:
        del method, path, accept
        self.requests += 1
        assert self.requests < 5000, "it asks without end"
        yield self._answer(httpx.Headers(headers or {}))


def pieces(total: int | None, size: int = 100) -> Iterator[bytes]:
    """A body of `total` bytes; None: without an end."""
    sent = 0
    while total is None or sent < total:
        assert sent < 8 << 20, "it reads without end"
        yield bytes(size)
        sent += size


def answer(total: int | None, headers: dict[str, str], digest: str = DIGEST) -> httpx.Response:
    return httpx.Response(200, headers={"etag": f'"{digest}"', **headers}, content=pieces(total))


def fetch(server: Server, target: Path, limit: int = LIMIT) -> str:
    retries = RetryPolicy(sleep=lambda _: None)
    return ResultDownloader(cast("PinnedHttpClient", server), retries, target, limit, None).fetch()


def test_a_result_within_the_limit_arrives(tmp_path: Path) -> None:
    digest = sha256_hex(bytes(LIMIT))
    server = Server(lambda _: answer(LIMIT, {"content-length": f"{LIMIT}"}, digest))
    assert fetch(server, tmp_path / "result") == digest
    assert (tmp_path / "result").stat().st_size == LIMIT


def test_an_announced_size_above_the_limit_is_refused_before_a_byte(tmp_path: Path) -> None:
    server = Server(lambda _: answer(None, {"content-length": f"{LIMIT + 1}"}))
    with pytest.raises(UsageError) as caught:
        fetch(server, tmp_path / "result")
    assert caught.value.code is ErrorCode.RESULT_TOO_LARGE
    assert "--max-bytes" in str(caught.value.hint)
    assert (server.requests, list(tmp_path.iterdir())) == (1, [])
    with pytest.raises(UsageError, match="expected at most 5 bytes, got 6 bytes"):
        require_result_size(Status(phase=Phase.AWAITING_PULL, result_bytes=6), 5)
    assert require_result_size(Status(phase=Phase.AWAITING_PULL, result_bytes=5), 5) == 5


@pytest.mark.parametrize("headers", [{}, {"content-length": "900"}, {"content-length": "x"}])
def test_an_endless_body_ends(headers: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        fetch(Server(lambda _: answer(None, headers)), tmp_path / "result")
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 900


def test_another_result_each_time_is_not_fetched_for_ever(tmp_path: Path) -> None:
    """Each connection brings bytes, of a result that no later connection goes on with."""

    def cut(_: httpx.Headers) -> httpx.Response:
        headers = {"etag": f'"{os.urandom(32).hex()}"', "content-length": f"{3 << 20}"}
        return httpx.Response(200, headers=headers, stream=Cut(pieces(2 << 20, 1 << 20)))

    server = Server(cut)
    with pytest.raises(UnavailableError):
        fetch(server, tmp_path / "result", 4 << 20)
    assert server.requests <= 20


class Cut(httpx.SyncByteStream):
    """A body whose connection breaks at its end."""

    def __init__(self, body: Iterator[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield from self._body
        raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "cut")


def test_retries_are_bounded_in_all_however_small_the_progress() -> None:
    policy = RetryPolicy(retries=3, total=50, sleep=lambda _: None)
    error = UnavailableError(ErrorCode.JOB_UNREACHABLE, "cut")
    for _ in range(50):
        policy.record_progress()
        policy.record_failure(error)
    policy.record_progress()
    with pytest.raises(UnavailableError):
        policy.record_failure(error)


def test_a_job_that_ends_each_stream_of_events_is_not_asked_for_ever() -> None:
    server = Server(lambda _: httpx.Response(200, content=iter([b": heartbeat\n\n"])))
    policy = RetryPolicy(total=50, sleep=lambda _: None)
    with pytest.raises(UnavailableError):
        list(EventStreamReader(cast("PinnedHttpClient", server), policy, None).events())
    assert server.requests == 51


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize("is_range", [True, False])
def test_a_partial_file_that_lies_there_as_a_link_is_not_written_through(
    kind: str, is_range: bool, tmp_path: Path
) -> None:
    mine, content = tmp_path / "mine", bytes(LIMIT)
    mine.write_bytes(b"mine")
    partial = tmp_path / f".result.{sha256_hex(content)}.partial"
    (partial.symlink_to if kind == "symbolic" else partial.hardlink_to)(mine)

    def serve(headers: httpx.Headers) -> httpx.Response:
        assert "range" not in headers, "it goes on with what it did not write"
        return answer(LIMIT, {"content-length": f"{LIMIT}"}, sha256_hex(content))

    if not is_range:  # of another result
        partial.rename(partial.with_name(f".result.{'0' * 64}.partial"))
    fetch(Server(serve), tmp_path / "result")
    assert mine.read_bytes() == b"mine"
    assert not (tmp_path / "result").is_symlink()
    assert (tmp_path / "result").read_bytes() == content


def test_the_state_of_an_upload_is_not_written_through_a_link(tmp_path: Path) -> None:
    mine, state = tmp_path / "mine", tmp_path / "state"
    mine.write_bytes(b"mine")
    for name in ("state", "state.partial"):
        (tmp_path / name).symlink_to(mine)
    location = f"/dataset/{'0' * 32}"
    saved = UploadState(
        url="https://h", peer_spki_sha256=DIGEST, location=location, size=1, ends_sha256=DIGEST
    )
    saved.write(state)
    assert mine.read_bytes() == b"mine"
    assert UploadState.read(state) == saved
    state.write_bytes(b" " * (1 << 20) + saved.model_dump_json().encode())
    assert UploadState.read(state) is None, "larger than any"


# the spool


def endless(file: Path) -> None:
    """A sparse file of a tebibyte."""
    file.touch()
    os.truncate(file, 1 << 40)


def spooled(spool: Path, content: bytes, **announced: object) -> SpoolClient:
    spool.mkdir()
    (spool / "result.tar.age").write_bytes(content)
    info = {"size": len(content), "sha256": sha256_hex(content), **announced}
    (spool / "result.json").write_text(json.dumps(info))
    return SpoolClient(SpoolDirectory(spool), timeout=0, sleep=lambda _: None)


def test_a_spooled_result_arrives(tmp_path: Path) -> None:
    client = spooled(tmp_path / "spool", b"result")
    assert client.download_result(tmp_path / "result", limit=6) == sha256_hex(b"result")


SPOOLED: dict[str, tuple[ErrorCode, Callable[[Path, Path], object]]] = {
    "a link": (ErrorCode.JOB_UNREACHABLE, lambda file, mine: file.symlink_to(mine)),
    "a link that leads nowhere": (
        ErrorCode.JOB_UNREACHABLE,
        lambda file, mine: file.symlink_to(mine / "x"),
    ),
    "a pipe": (ErrorCode.JOB_UNREACHABLE, lambda file, _: os.mkfifo(file)),
    "a directory": (ErrorCode.JOB_UNREACHABLE, lambda file, _: file.mkdir()),
    "nothing": (ErrorCode.JOB_UNREACHABLE, lambda _file, _mine: None),
    "more": (
        ErrorCode.RESULT_DIGEST_MISMATCH,
        lambda file, _: file.write_bytes(b"result and more"),
    ),
    "less": (ErrorCode.RESULT_DIGEST_MISMATCH, lambda file, _: file.write_bytes(b"res")),
    "no end": (ErrorCode.RESULT_DIGEST_MISMATCH, lambda file, _: endless(file)),
}


@pytest.mark.parametrize("kind", SPOOLED)
def test_what_lies_in_place_of_a_spooled_result(kind: str, tmp_path: Path) -> None:
    client, mine = spooled(tmp_path / "spool", b"result"), tmp_path / "mine"
    mine.write_bytes(b"result")
    file = tmp_path / "spool" / "result.tar.age"
    file.unlink()
    code, place = SPOOLED[kind]
    place(file, mine)
    with pytest.raises(TrainerError) as caught:
        client.download_result(tmp_path / "result", limit=LIMIT)
    assert caught.value.code is code
    assert not (tmp_path / "result").exists()


def test_a_spooled_result_above_the_limit_is_not_copied(tmp_path: Path) -> None:
    client = spooled(tmp_path / "spool", b"result")
    with pytest.raises(UsageError) as caught:
        client.download_result(tmp_path / "result", limit=5)
    assert caught.value.code is ErrorCode.RESULT_TOO_LARGE


@pytest.mark.parametrize(
    "name", ["status.json", "evidence.json", "events.jsonl", "deletion.json", "result.json"]
)
def test_no_other_file_of_a_spool_is_a_link_or_without_a_bound(name: str, tmp_path: Path) -> None:
    client = spooled(tmp_path / "spool", b"result")
    (tmp_path / "mine").write_bytes(b"{}")
    file = tmp_path / "spool" / name
    file.unlink(missing_ok=True)
    file.symlink_to(tmp_path / "mine")
    assert client._spool.read(name, 1 << 20) is None
    file.unlink()
    endless(file)
    assert client._spool.read(name, 1 << 20) is None
