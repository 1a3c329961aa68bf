"""Attacks by hand over real TLS sockets: each gets a documented refusal or nothing, and honest clients go on."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
REFUSAL = re.compile(rb'\{"error":"[a-z-]+"\}\Z')


def answer_to(front: Any, request: bytes, *, seconds: float = 5) -> bytes:
    """All that comes back until the server closes or is silent."""
    connection = front.connect()
    connection.settimeout(seconds)
    data = b""
    with contextlib.suppress(OSError, ssl.SSLError):
        connection.sendall(request)
        while block := connection.recv(65536):
            data += block
    connection.close()
    return data


def honest(front: Any) -> None:
    with front.http() as http:
        assert http.get("/status").json()["phase"] == "awaiting-dataset"


def get(target: str, *lines: str, version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    head = [f"{method} {target} {version}", "Host: x", "Connection: close", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin1")


SMUGGLING = {
    "two lengths": get("/ack", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST")
    + b"0\r\n\r\nGET /",
    "two different lengths": get("/ack", "Content-Length: 5", "Content-Length: 6", method="POST")
    + b"hello!",
    "negative length": get("/ack", "Content-Length: -1", method="POST"),
    "length with a sign": get("/ack", "Content-Length: +1", method="POST") + b"x",
    "length beyond 20 digits": get("/ack", "Content-Length: " + "9" * 40, method="POST"),
    "unknown coding": get("/ack", "Transfer-Encoding: gzip, chunked", method="POST"),
    "space before the colon": get("/status", "X : y"),
    "no colon": get("/status", "X"),
    "zero byte": get("/status", "X: a\x00b"),
    "no host": b"GET /status HTTP/1.1\r\n\r\n",
    "two hosts": get("/status", "Host: y"),
    "overlong head": get("/status", "X: " + "y" * 40_000),
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_malformed_heads(shared_front: Any, name: str) -> None:
    answer = answer_to(shared_front, SMUGGLING[name])
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert REFUSAL.search(answer)
    honest(shared_front)


TARGETS = {
    "../": ("/../status", 404), "%2e": ("/%2e%2e/status", 404), "%252e": ("/dataset/%252e%252e", 405),
    "backslash": ("/..\\..\\etc\\passwd", 404), "overlong": ("/%c0%ae%c0%ae/etc/passwd", 404),
    "zero": ("/status%00", 404), "slashes": ("//status", 404), "absolute": ("https://x/status", 404),
    "absolute file": ("/result/%2fetc%2fpasswd", 404), "nonce": ("/attestation?nonce=%00", 400),
    "long query": ("/attestation?nonce=" + "a" * 9000, 400),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_targets(shared_front: Any, name: str) -> None:
    target, status = TARGETS[name]
    answer = answer_to(shared_front, get(target))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert REFUSAL.search(answer)


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "PUT", "get", "X" * 200])
def test_methods(shared_front: Any, method: str) -> None:
    answer = answer_to(shared_front, get("/status", method=method))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nallow: GET\r\n" in answer


@pytest.mark.parametrize(
    "lines",
    [("Connection: Upgrade", "Upgrade: websocket"), ("Connection: Upgrade", "Upgrade: h2c")],
)
def test_upgrades_are_ignored(shared_front: Any, lines: tuple[str, ...]) -> None:
    assert answer_to(shared_front, get("/status", *lines)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "hello", [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET /status HTTP/1.1\r\n\r\n"]
)
def test_half_a_handshake_is_cut_off(shared_front: Any, hello: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared_front.ready.port), timeout=10) as raw:
        raw.sendall(hello)
        data = b""
        with contextlib.suppress(ConnectionError):
            while block := raw.recv(4096):
                data += block
    assert b"HTTP" not in data
    honest(shared_front)


def test_only_tls_13(shared_front: Any) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = version
        with socket.create_connection(("127.0.0.1", shared_front.ready.port), timeout=10) as raw:
            if version is ssl.TLSVersion.TLSv1_2:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    context.wrap_socket(raw)
            else:
                with context.wrap_socket(raw) as connection:
                    assert connection.version() == "TLSv1.3"


def test_uploads_at_other_offsets_and_after_the_end(front: Any) -> None:
    with front.http() as http:
        where = http.post("/dataset", headers={**TUS, "Upload-Length": "6"}).headers["location"]
        for offset in ("1", "6", "7", "9999999999999999"):
            answer = http.patch(where, headers={**PIECE, "Upload-Offset": offset}, content=b"")
            assert answer.status_code in {409, 413}
        assert http.patch(where, headers=PIECE, content=b"abc").status_code == 204
        assert http.patch(where, headers=PIECE, content=b"abc").json() == {
            "error": "upload-conflict"
        }
        rest = {**PIECE, "Upload-Offset": "3"}
        assert http.patch(where, headers=rest, content=b"def").status_code == 204
        assert http.patch(where, headers=rest, content=b"xyz").json() == {
            "error": "upload-conflict"
        }
        assert (
            http.post("/dataset", headers={**TUS, "Upload-Length": "1"}).json()["error"]
            == "wrong-phase"
        )
    assert (front.spool / "dataset.age").read_bytes() == b"abcdef"


def test_memory_is_flat_under_hostile_requests(front: Any) -> None:
    requests = [*SMUGGLING.values(), *(get(target) for target, _ in TARGETS.values())]
    with ThreadPoolExecutor(8) as clients:  # a refused connection lingers: they wait side by side
        list(clients.map(partial(answer_to, front), requests))
        before = front.rss()
        list(clients.map(partial(answer_to, front), (requests * 3)[:48]))
    with front.http() as http:
        for number in range(300):
            http.get(f"/{number:0>4000}", headers={"X": "y" * 4000})
    assert front.rss() - before < 48 << 20
    honest(front)


def test_http_2_by_prior_knowledge_gets_refusals_only(shared_front: Any) -> None:
    answer = answer_to(shared_front, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answer) == [b"404", b"400"]
    assert REFUSAL.search(answer)
