"""The pin holds whichever way a connection is made."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from trainer.encoding import sha256_hex
from trainer.errors import VerificationError
from trainer.exchange.tls import PinnedContext, make_server_context


@pytest.fixture
def server() -> Iterator[tuple[int, str]]:
    context, key = make_server_context(now=1_700_000_000)
    spki = sha256_hex(key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as connection:
                    connection.recv(1)
            except OSError:
                raw.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1], spki
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def connect(
    context: PinnedContext, port: int, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), timeout=5), session=session
    )


def test_records_then_demands(server: tuple[int, str]) -> None:
    port, spki = server
    context = PinnedContext(None)
    for _ in range(2):
        with connect(context, port) as connection:
            assert connection.version() == "TLSv1.3"
            assert not connection.session_reused
        assert context.pin == spki


def test_every_server_context_has_its_own_key() -> None:
    assert make_server_context(now=0)[1] != make_server_context(now=0)[1]


def test_other_key_closes_the_connection(server: tuple[int, str]) -> None:
    raw = socket.create_connection(("127.0.0.1", server[0]), timeout=5)
    with pytest.raises(VerificationError) as caught:
        PinnedContext("0" * 64).wrap_socket(raw)
    assert (caught.value.expected, caught.value.found) == ("0" * 64, server[1])
    assert raw.fileno() == -1


def test_no_way_around_the_check(server: tuple[int, str]) -> None:
    context = PinnedContext("0" * 64)
    with socket.create_connection(("127.0.0.1", server[0]), timeout=5) as raw:
        with pytest.raises(ValueError, match="at once"):
            context.wrap_socket(raw, do_handshake_on_connect=False)
        with pytest.raises(ValueError, match="blocking"):
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
