"""Clients that mean harm: too slow, too much, too many, or not HTTP at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.front.conftest import QUICK
from trainer.errors import ErrorCode
from trainer.ipc.front_messages import FrontFailed, Ready, Shutdown, supervisor_channel
from trainer.models import Phase


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while block := connection.recv(65536):
            data += block
    return data


def send_slowly(connection: socket.socket, pieces: Iterable[bytes], seconds: float) -> None:
    """Send piece by piece, with a pause after each; raises once the other end has closed the connection."""
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(seconds)


def test_head_drop_by_drop_is_cut_off(front: Any) -> None:
    slow = front.connect()
    head = b"GET /status HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 400
    # Head_seconds is 1, and all of it would take 20.
    with pytest.raises((ConnectionError, ssl.SSLError)):
        send_slowly(slow, (bytes([byte]) for byte in head), 0.05)
    assert read_to_end(slow) == b""
    slow.close()


def test_silence_after_the_handshake_is_cut_off(front: Any) -> None:
    started = time.monotonic()
    silent = front.connect()
    assert read_to_end(silent) == b""  # or its own time-out
    assert time.monotonic() - started >= QUICK["head_seconds"]
    silent.close()


def test_silence_instead_of_a_handshake_is_cut_off(front: Any) -> None:
    started = time.monotonic()
    silent = socket.create_connection(("127.0.0.1", front.ready.port), timeout=10)
    assert read_to_end(silent) == b""
    assert time.monotonic() - started >= QUICK["handshake_seconds"]
    silent.close()


def test_idle_connection_is_closed(front: Any) -> None:
    started = time.monotonic()
    idle = front.connect()
    idle.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in read_to_end(idle)
    assert time.monotonic() - started >= QUICK["idle_seconds"]
    idle.close()


def test_body_that_nobody_wants_is_cut_off(front: Any) -> None:
    endless = front.connect()
    endless.sendall(b"POST /ack HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
    # Linger_seconds is 0.5, and all of it would take 20.
    with pytest.raises((ConnectionError, ssl.SSLError)):
        send_slowly(endless, itertools.repeat(bytes(1000), 2000), 0.01)
    endless.close()


def test_answer_that_nobody_reads_is_cut_off(front: Any) -> None:
    front.publish_result(bytes(64 << 20))
    before = front.rss()
    lazy = front.connect()
    lazy.sendall(b"GET /result HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(4)  # block_seconds is 1, then the TLS shutdown's 1
    assert front.rss() - before < 16 << 20
    assert len(read_to_end(lazy)) < 64 << 20
    lazy.close()


def test_heads_that_are_too_large(front: Any) -> None:
    for head in [b"X: " + b"y" * 40_000, b"\r\n".join(b"X%d: y" % number for number in range(60))]:
        connection = front.connect()
        connection.sendall(
            b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + head + b"\r\n\r\n"
        )
        answer = read_to_end(connection)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
        assert answer.endswith(b'{"error":"request-invalid"}')
        connection.close()


def test_a_head_that_arrives_at_once_is_no_larger_than_others(front: Any) -> None:
    """The parser bounds what it has to keep of an incomplete head, and this one is never incomplete for long."""
    large = [b"X%d: " % number + b"y" * 8000 for number in range(4)]
    with front.connect() as connection:
        connection.sendall(
            b"\r\n".join(
                [b"GET /status HTTP/1.1", b"Host: x", b"Connection: close", *large, b"", b""]
            )
        )
        answer = read_to_end(connection)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert answer.endswith(b'{"error":"request-invalid"}')


def test_what_is_no_http(front: Any) -> None:
    for garbage in [b"\x00" * 100, b"GET\r\n\r\n", b"\r\n" * 50 + b"x y z\r\n\r\n"]:
        connection = front.connect()
        connection.sendall(garbage)
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b'{"error":"request-invalid"}')
        assert b"server:" not in answer.lower()
        connection.close()


def test_garbage_inside_a_body_closes_the_connection(front: Any) -> None:
    connection = front.connect()
    connection.sendall(
        b"POST /ack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk\r\n"
    )
    answer = read_to_end(connection)
    assert b"Invalid HTTP" not in answer
    connection.close()


def test_plain_http_and_old_tls_get_nothing(front: Any) -> None:
    plain = socket.create_connection(("127.0.0.1", front.ready.port), timeout=10)
    plain.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"HTTP" not in read_to_end(plain)
    plain.close()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode, old.maximum_version = (
        False,
        ssl.CERT_NONE,
        ssl.TLSVersion.TLSv1_2,
    )
    raw = socket.create_connection(("127.0.0.1", front.ready.port), timeout=10)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(raw)
    raw.close()


def test_connections_beyond_the_cap_are_closed(start_front: Any) -> None:
    front = start_front(connections=8, handshake_seconds=60.0)
    held = [socket.create_connection(("127.0.0.1", front.ready.port), timeout=10) for _ in range(8)]
    extra = socket.create_connection(("127.0.0.1", front.ready.port), timeout=10)
    assert read_to_end(extra) == b""
    assert select.select(held, [], [], 0)[0] == [], "those that came before are held still"
    extra.close()
    for connection in held:
        connection.close()
    time.sleep(0.3)
    front.enter(Phase.PREPARING)  # and the places are free again


def test_concurrent_requests(front: Any) -> None:
    def ask(_: int) -> list[int]:
        with front.http() as http:
            return [http.get("/status").status_code for _ in range(5)]

    with ThreadPoolExecutor(16) as pool:
        assert [status for statuses in pool.map(ask, range(32)) for status in statuses] == [
            200
        ] * 160


def test_ends_with_its_supervisor(start_front: Any) -> None:
    front = start_front()
    assert isinstance(front.ready, Ready)
    with socket.socket(fileno=os.dup(front.channel.fileno())) as supervisor:
        supervisor.shutdown(socket.SHUT_RDWR)
    assert front.process.wait(10) == 0


def test_shutdown_lets_a_download_end(front: Any) -> None:
    content = bytes(8 << 20)
    front.publish_result(content)
    with front.http() as http, http.stream("GET", "/result") as answer:
        pieces = answer.iter_raw()
        received = len(next(pieces))
        front.send(Shutdown())
        time.sleep(0.5)
        received += sum(len(piece) for piece in pieces)
    assert received == len(content)
    assert front.process.wait(10) == 0


def test_address_in_use_is_told() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    ours, theirs = socket.socketpair()
    settings = f'{{"host": "127.0.0.1", "port": {taken.getsockname()[1]}}}'
    command = [
        sys.executable,
        "-m",
        "trainer.front",
        "--control-fd",
        str(theirs.fileno()),
        "--spool",
        ".",
    ]
    process = subprocess.Popen(
        [*command, "--settings-json", settings],
        pass_fds=[theirs.fileno()],
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    channel = supervisor_channel(ours)
    assert channel.receive(timeout=20) == FrontFailed(code=ErrorCode.FRONT_DIED)
    assert channel.receive(timeout=20) is None
    assert process.wait(10) == 1
    channel.close()
    taken.close()


def test_the_key_never_reaches_a_disk(front: Any) -> None:
    """Nothing that the process holds open, and nothing in its spool, is a key file."""
    targets = [str(path.readlink()) for path in Path(f"/proc/{front.process.pid}/fd").iterdir()]
    assert all(
        target.startswith(("socket:", "pipe:", "anon_inode:", "/dev/null", "/memfd:printed "))
        for target in targets
    ), targets
    assert list(front.spool.iterdir()) == []
