"""The tus server: protocol, durability, one upload at a time, and every cap."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.front.conftest import QUICK
from trainer.exchange.upload_authorization import (
    UploadAuthorization,
    UploadScope,
    sign_authorization,
)
from trainer.front.http.answers import RequestRefused
from trainer.front.http.result_routes import parse_range
from trainer.ipc.front_messages import OpenUpload, StatusUpdate, UploadReady
from trainer.models import Phase, Status
from trainer.provider_keys import ProviderKey

TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {**TUS, "Content-Type": "application/offset+octet-stream"}


def create(http: httpx.Client, length: int) -> str:
    answer = http.post("/dataset", headers={**TUS, "Upload-Length": str(length)})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def patch(http: httpx.Client, where: str, offset: int, body: Any, **headers: str) -> httpx.Response:
    return http.patch(
        where, headers={**PATCH, "Upload-Offset": str(offset), **headers}, content=body
    )


def refused(answer: httpx.Response) -> tuple[int, str]:
    keys = ["error", "phase"] if answer.json()["error"] == "wrong-phase" else ["error"]
    assert list(answer.json()) == keys
    return answer.status_code, answer.json()["error"]


def test_options_say_what_the_server_can(front: Any) -> None:
    with front.http() as http:
        answer = http.options("/dataset")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,expiration,termination"
    assert answer.headers["tus-max-size"] == str(1 << 34)


def test_upload_in_pieces(front: Any) -> None:
    content = bytes(range(256)) * 5000
    with front.http() as http:
        where = create(http, len(content))
        for start in range(0, len(content), 500_000):
            answer = patch(http, where, start, content[start : start + 500_000])
            assert answer.status_code == 204
            assert int(answer.headers["upload-offset"]) == min(len(content), start + 500_000)
            head = http.head(where, headers=TUS)
            assert head.headers["upload-length"] == str(len(content))
            assert head.headers["upload-offset"] == answer.headers["upload-offset"]
            assert head.headers["cache-control"] == "no-store"
        assert front.expect(UploadReady).size == len(content)
        assert [path.name for path in front.spool.iterdir()] == ["dataset.age"]
        assert (front.spool / "dataset.age").read_bytes() == content
        assert (front.spool / "dataset.age").stat().st_mode & 0o777 == 0o600
        assert refused(http.post("/dataset", headers={**TUS, "Upload-Length": "1"})) == (
            409,
            "wrong-phase",
        )
        assert refused(patch(http, where, len(content), b"")) == (409, "upload-conflict")
        assert refused(http.delete(where, headers=TUS)) == (409, "wrong-phase")


def test_not_there_under_its_name_before_it_is_whole(front: Any) -> None:
    with front.http() as http:
        where = create(http, 10)
        patch(http, where, 0, b"123456789")
        (partial,) = front.spool.iterdir()
        assert (partial.suffix, partial.read_bytes()) == (".partial", b"123456789")
        assert front.received(UploadReady) == []


def test_protocol_errors(front: Any) -> None:
    with front.http() as http:
        answer = http.post("/dataset", headers={"Upload-Length": "10"})
        assert (refused(answer), answer.headers["tus-version"]) == (
            (412, "request-invalid"),
            "1.0.0",
        )
        for length in ["-1", "1e3", "", "0", "9" * 17, "1_0", "0x10"]:
            answer = http.post("/dataset", headers={**TUS, "Upload-Length": length})
            assert refused(answer) == (400, "request-invalid"), length
        assert refused(http.post("/dataset", headers=TUS)) == (400, "request-invalid")
        where = create(http, 10)
        assert refused(patch(http, "/dataset/" + "0" * 32, 0, b"x")) == (404, "not-found")
        assert refused(patch(http, "/dataset/..%2f..%2fetc", 0, b"x")) in {
            (404, "not-found"),
            (400, "request-invalid"),
        }
        assert refused(patch(http, where, 1, b"x")) == (409, "upload-conflict")
        assert refused(patch(http, where, 0, b"x", **{"Content-Type": "text/plain"})) == (
            415,
            "request-invalid",
        )
        assert refused(patch(http, where, 0, b"x" * 11)) == (413, "dataset-too-large")
        assert refused(patch(http, where, 0, iter([b"x" * 6, b"y" * 6]))) == (
            413,
            "dataset-too-large",
        )
        assert http.head("/dataset/" + "0" * 32, headers=TUS).status_code == 404
        assert http.head(where, headers=TUS).headers["upload-offset"] == "0"


def test_why_an_earlier_upload_was_refused_is_no_answer_to_this_one(front: Any) -> None:
    """Also before the supervisor knows of it: who has uploaded asks at once."""
    refused = Status(phase=Phase.AWAITING_DATASET, error="sealed-header-invalid", result_bytes=7)
    front.send(StatusUpdate(status=refused))
    with front.http() as http:
        while http.get("/status").json()["error"] is None:
            time.sleep(0.01)
        where = create(http, 6)
        assert http.get("/status").json()["error"] == "sealed-header-invalid"
        assert patch(http, where, 0, b"abcdef").status_code == 204
        status = http.get("/status").json()
        assert (status["phase"], status["error"], status["result_bytes"]) == (
            "awaiting-dataset",
            None,
            None,
        )


def test_chunked_body_counts_too(front: Any) -> None:
    with front.http() as http:
        where = create(http, 6)
        assert patch(http, where, 0, iter([b"abc", b"def"])).status_code == 204
    assert (front.spool / "dataset.age").read_bytes() == b"abcdef"


def test_too_large(start_front: Any) -> None:
    front = start_front(exchange={"max_upload_bytes": 2048})
    front.enter(Phase.AWAITING_DATASET, accept=True)
    with front.http() as http:
        answer = http.post("/dataset", headers={**TUS, "Upload-Length": "2049"})
        assert (refused(answer), answer.headers["tus-max-size"]) == (
            (413, "dataset-too-large"),
            "2048",
        )
        create(http, 2048)


def test_larger_than_the_disk(start_front: Any) -> None:
    front = start_front(exchange={"max_upload_bytes": 1 << 44})
    front.enter(Phase.AWAITING_DATASET, accept=True)
    with front.http() as http:
        answer = http.post("/dataset", headers={**TUS, "Upload-Length": str(1 << 44)})
    assert refused(answer) == (507, "storage-full")


def test_one_upload_at_a_time_until_it_is_idle(front: Any) -> None:
    with front.http() as http:
        first = create(http, 10)
        patch(http, first, 0, b"12345")
        assert refused(http.post("/dataset", headers={**TUS, "Upload-Length": "3"})) == (
            409,
            "job-busy",
        )
        time.sleep(1.1)  # upload_idle_seconds
        second = create(http, 3)
        assert http.head(first, headers=TUS).status_code == 404
        assert patch(http, second, 0, b"abc").status_code == 204
    assert (front.spool / "dataset.age").read_bytes() == b"abc"


def test_directories_in_the_place_of_uploads_end_no_front(start_front: Any, tmp_path: Path) -> None:
    for name in ("upload-x.partial", "dataset.age"):
        (tmp_path / "spool0" / name / "inside").mkdir(parents=True)
    front = start_front()
    front.enter(Phase.AWAITING_DATASET, accept=True)
    with front.http() as http:
        assert patch(http, create(http, 3), 0, b"abc").status_code == 204
    assert front.expect(UploadReady).size == 3
    assert (front.spool / "dataset.age").read_bytes() == b"abc"


PROVIDER = ProviderKey(b"p" * 32)
SCOPE = UploadScope(job_spec_sha256="4d" * 32, recipient_sha256=("2b" * 32,))


def test_a_job_that_lists_providers_stores_no_byte_of_a_stranger(start_front: Any) -> None:
    """Nor does a stranger take the place of an upload that makes no progress."""
    front = start_front(exchange={"providers": [PROVIDER.public]}, upload_idle_seconds=0.001)
    front.send(OpenUpload(accept=True, scope=SCOPE))
    front.enter(Phase.AWAITING_DATASET)

    def authorization(
        key: ProviderKey, size: int, tls: str | None = front.ready.tls_spki_sha256
    ) -> str:
        document = UploadAuthorization(
            version=1, expires_at=int(time.time()) + 60, job_spec_sha256=SCOPE.job_spec_sha256,
            recipient_sha256=SCOPE.recipient_sha256[0], size=size, tls_spki_sha256=tls,
        )  # fmt: skip
        return f"Bearer {sign_authorization(document, key)}"

    with front.http() as http:

        def ask(shown: str | None, length: int = 6) -> httpx.Response:
            headers = {
                **TUS,
                "Upload-Length": str(length),
                **({} if shown is None else {"Authorization": shown}),
            }
            answer: httpx.Response = http.post("/dataset", headers=headers)
            return answer

        good = authorization(PROVIDER, 6)
        created = ask(good)
        assert created.status_code == 201
        assert patch(http, created.headers["location"], 0, b"abc").status_code == 204
        for shown in (
            None, "Bearer x.y", authorization(ProviderKey(bytes(32)), 6), authorization(PROVIDER, 7),
            authorization(PROVIDER, 6, "00" * 32), good.replace("Bearer", "Basic"),
        ):  # fmt: skip
            answer = ask(shown)
            assert refused(answer) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert patch(http, created.headers["location"], 3, b"def").status_code == 204
        assert (front.spool / "dataset.age").read_bytes() == b"abcdef"
        assert front.expect(UploadReady).size == 6


def test_terminate_makes_room(front: Any) -> None:
    with front.http() as http:
        first = create(http, 10)
        assert http.delete(first, headers=TUS).status_code == 204
        assert http.head(first, headers=TUS).status_code == 404
        create(http, 3)
    assert len(list(front.spool.iterdir())) == 1


def test_closing_discards_an_unfinished_upload(front: Any) -> None:
    with front.http() as http:
        where = create(http, 10)
        patch(http, where, 0, b"12345")
        front.enter(Phase.FAILED, accept=False)
        assert refused(patch(http, where, 5, b"67890")) == (404, "not-found")
    assert list(front.spool.iterdir()) == []


def test_another_dataset_after_a_failed_opening(front: Any) -> None:
    with front.http() as http:
        patch(http, create(http, 3), 0, b"bad")
        front.expect(UploadReady)
        front.send(OpenUpload(accept=True))
        front.enter(Phase.AWAITING_DATASET)
        patch(http, create(http, 4), 0, b"good")
    assert front.expect(UploadReady, count=2).size == 4
    assert (front.spool / "dataset.age").read_bytes() == b"good"


def test_broken_connection_keeps_what_arrived(front: Any) -> None:
    content = bytes(range(256)) * 4000
    with front.http() as http:
        where = create(http, len(content))
        broken = front.connect()
        head = f"PATCH {where} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        broken.sendall(head.encode() + content[:700_000])
        broken.unwrap()
        broken.close()
        (partial,) = front.spool.iterdir()
        deadline = time.monotonic() + 5
        while partial.stat().st_size < 700_000:  # not by HEAD: that ends a request which still adds
            assert time.monotonic() < deadline
            time.sleep(0.02)
        offset = int(http.head(where, headers=TUS).headers["upload-offset"])
        assert offset == 700_000
        patch(http, where, offset, content[offset:])
    assert (front.spool / "dataset.age").read_bytes() == content


def test_newest_request_wins_over_a_dead_connection(start_front: Any) -> None:
    front = start_front(block_seconds=60.0)
    front.enter(Phase.AWAITING_DATASET, accept=True)
    with front.http() as http:
        where = create(http, 10)
        hanging = front.connect()
        head = f"PATCH {where} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += "Content-Type: application/offset+octet-stream\r\nContent-Length: 10\r\n\r\n"
        hanging.sendall(head.encode() + b"1234")
        time.sleep(0.3)
        # Long before block_seconds.
        assert http.head(where, headers=TUS).headers["upload-offset"] == "4"
        assert b"409" in hanging.recv(1000)
        assert patch(http, where, 4, b"567890").status_code == 204
        hanging.close()
    assert (front.spool / "dataset.age").read_bytes() == b"1234567890"


def test_slow_body_is_cut_off_and_kept(front: Any) -> None:
    with front.http() as http:
        where = create(http, 10)
        started = time.monotonic()
        slow = front.connect()
        head = f"PATCH {where} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += "Content-Type: application/offset+octet-stream\r\nContent-Length: 10\r\n\r\n"
        slow.sendall(head.encode() + b"12")
        answer = slow.recv(1000)
        assert b" 408 " in answer
        assert b'{"error":"timeout"}' in answer + slow.recv(1000)
        assert slow.recv(1000) == b""  # and the connection is closed
        assert time.monotonic() - started >= QUICK["block_seconds"]
        assert http.head(where, headers=TUS).headers["upload-offset"] == "2"
        slow.close()


def test_memory_is_flat_for_a_large_upload(front: Any) -> None:
    size = 200 << 20
    block = bytes(1 << 20)

    with front.http() as http:
        where = create(http, size)
        patch(http, where, 0, block)
        before = front.rss()
        answer = patch(http, where, len(block), (block for _ in range((size >> 20) - 1)))
        grown = front.rss() - before
    assert answer.status_code == 204
    assert (front.spool / "dataset.age").stat().st_size == size
    assert grown < 24 << 20


@given(st.text(alphabet="bytes=0123456789-, ", max_size=30), st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_any_range_is_within_the_file(text: str, size: int) -> None:
    with contextlib.suppress(RequestRefused):
        wanted = parse_range(text, size)
        if wanted is None:
            return
        assert 0 <= wanted[0] < wanted[1] <= size
