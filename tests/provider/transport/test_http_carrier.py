"""`JobClient` against a real front, through a relay that breaks connections, and against an impostor."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.front.conftest import ACKNOWLEDGEMENT
from trainer.encoding import sha256_hex
from trainer.errors import (
    ErrorCode,
    UnavailableError,
    UsageError,
    VerificationError,
)
from trainer.exchange.tls import make_server_context
from trainer.ipc.front_messages import (
    Acknowledged,
    DeletionReady,
    PrivateEvent,
    StatusUpdate,
    TokenHashes,
)
from trainer.models import Phase, Status
from trainer.provider.transport.carrier import SealedEvent
from trainer.provider.transport.http_carrier import JobClient
from trainer.provider.transport.pinned_http import _parse_refusal

NONCE = "cd" * 32
LIMIT = 16 << 20
TOKEN = "5c" * 32


def test_first_connection_records_the_key(client_of: Any, front: Any) -> None:
    with client_of(front, pinned_spki_sha256=None) as client:
        assert client.peer_spki_sha256 is None
        assert client.attestation(NONCE) == b'{"nonce": "' + NONCE.encode() + b'"}'
        assert client.peer_spki_sha256 == front.ready.tls_spki_sha256
        assert client.status() == Status(phase=Phase.AWAITING_DATASET)


def test_nothing_goes_to_a_key_that_nobody_looked_at(
    client_of: Any, front: Any, tmp_path: Path
) -> None:
    (tmp_path / "sealed").write_bytes(b"sealed")
    with client_of(front, pinned_spki_sha256=None) as client:
        with pytest.raises(UsageError, match="not known yet"):
            client.upload(tmp_path / "sealed")
        with pytest.raises(UsageError, match="not known yet"):
            client.events(TOKEN)
        with pytest.raises(UsageError, match="not known yet"):
            client.acknowledge(ACKNOWLEDGEMENT)


class Impostor:
    """A TLS server with another key, which counts every byte after the handshake."""

    def __init__(self) -> None:
        self._context, key = make_server_context(now=1_700_000_000)
        self.spki = sha256_hex(key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.handshakes = 0
        self.received = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.settimeout(5)
            with (
                contextlib.suppress(OSError),
                self._context.wrap_socket(raw, server_side=True) as connection,
            ):
                self.handshakes += 1
                while block := connection.recv(4096):
                    self.received += block

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed by the test already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    impostor = Impostor()
    yield impostor
    impostor.close()


def test_an_impostor_gets_no_byte(
    impostor: Impostor, client_of: Any, front: Any, tmp_path: Path
) -> None:
    sealed = tmp_path / "sealed"
    sealed.write_bytes(b"sealed")
    calls: list[Callable[[JobClient], object]] = [
        lambda client: client.attestation(NONCE),
        lambda client: client.upload(sealed),
        lambda client: client.status(),
        lambda client: next(iter(client.events(TOKEN))),
        lambda client: client.download_result(tmp_path / "result", limit=LIMIT),
        lambda client: client.acknowledge(ACKNOWLEDGEMENT),
    ]
    for call in calls:
        with client_of(front, f"https://127.0.0.1:{impostor.port}") as client:
            with pytest.raises(VerificationError) as caught:
                call(client)
            assert caught.value.code is ErrorCode.TLS_KEY_MISMATCH
            assert caught.value.expected == front.ready.tls_spki_sha256
            assert caught.value.found == impostor.spki
    impostor.close()
    assert impostor.handshakes == len(calls)
    assert impostor.received == b""


def test_key_that_changes_between_connections(
    impostor: Impostor, client_of: Any, relay_to: Any, front: Any
) -> None:
    relay = relay_to(front)
    relay.cut_down = [4000]
    with client_of(front, relay.url, pinned_spki_sha256=None) as client:
        client.attestation(NONCE)
        relay.retarget(impostor.port)
        relay.cut_up = [1]
        client.close()
    with client_of(front, relay.url, pinned_spki_sha256=front.ready.tls_spki_sha256) as client:
        relay.cut_up = []
        with pytest.raises(VerificationError):
            client.status()
    impostor.close()
    assert impostor.received == b""


def test_result_and_ack_before_there_is_one(client_of: Any, front: Any, tmp_path: Path) -> None:
    with client_of(front) as client:
        calls: tuple[Callable[[], object], ...] = (
            lambda: client.download_result(tmp_path / "result", limit=LIMIT),
            lambda: client.acknowledge(ACKNOWLEDGEMENT),
        )
        for call in calls:
            with pytest.raises(UnavailableError) as caught:
                call()
            assert caught.value.code is ErrorCode.WRONG_PHASE
            assert "`trainer watch` shows its phase" in str(caught.value.hint)
        front.publish_result(b"sealed")
        front.send(DeletionReady(statement='{"signed":1}'))
        assert client.acknowledge(ACKNOWLEDGEMENT) == b'{"signed":1}'
    front.expect(Acknowledged)


def test_events_survive_broken_connections(client_of: Any, front: Any, relay: Any) -> None:
    front.send(TokenHashes(sha256=(hashlib.sha256(TOKEN.encode()).hexdigest(),)))
    relay.cut_down = [3000, 3000, 3000]
    with client_of(front, relay.url) as client:
        events = client.events(TOKEN)
        seen = [next(events)]
        for number in range(40):
            front.send(PrivateEvent(sealed="QUFB" * 1000 + f"{number:04d}"))
        front.send(StatusUpdate(status=Status(phase=Phase.DONE)))
        seen += list(events)
    assert relay.connections >= 3
    private = [event for event in seen if isinstance(event, SealedEvent)]
    assert len(private) == len({event.sealed for event in private}) == 40
    assert [event.id for event in private] == sorted({event.id for event in private})
    assert seen[-1] == Status(phase=Phase.DONE)


def test_events_with_a_wrong_token(client_of: Any, front: Any) -> None:
    front.send(TokenHashes(sha256=("0" * 64,)))
    front.enter(Phase.TRAINING)
    with client_of(front) as client, pytest.raises(UsageError) as caught:
        next(iter(client.events(TOKEN)))
    assert caught.value.code is ErrorCode.UNAUTHORIZED


@pytest.mark.parametrize(
    "url",
    ["http://h:1", "h:1", "https://", "https://h/x", "https://u@h", "https://h/?q", "ftp://h"],
)
def test_what_is_no_job_url(url: str) -> None:
    with pytest.raises(UsageError):
        JobClient(url)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        JobClient(f"https://127.0.0.1:{port}") as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.status()
    assert caught.value.code is ErrorCode.JOB_UNREACHABLE


class Stranger:
    """A TLS server that gives one fixed answer."""

    def __init__(self, answer: bytes) -> None:
        self._context, _ = make_server_context(now=1_700_000_000)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        raw, _ = self._listener.accept()
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(raw, server_side=True) as connection,
        ):
            connection.recv(65536)
            connection.sendall(self._answer)

    def close(self) -> None:
        self._thread.join(5)
        self._listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{not}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 503 X\r\nContent-Length: 19\r\n\r\n{"error":"made-up"}',
        b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 500 X\r\nContent-Length: 100000\r\n\r\n" + b" " * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ncut",
        b"SSH-2.0-x\r\n",
        b"",
    ],
)
def test_strange_answers_are_errors_of_ours(answer: bytes) -> None:
    stranger = Stranger(answer)
    with JobClient(stranger.url, timeout=5) as client, pytest.raises(UnavailableError) as caught:
        client.status()
    stranger.close()
    assert caught.value.code is ErrorCode.JOB_UNREACHABLE


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        *(
            ('"training"', "the job's turn"),
            ('"awaiting-dataset"', "a provider's turn"),
            ('"failed"', "has ended"),
        ),
        *(
            ('"made-up"', "refused: wrong-phase"),
            ("7", "refused: wrong-phase"),
            ("[]", "refused: wrong-phase"),
        ),
    ],
)
def test_a_request_in_the_wrong_phase_is_told_whose_turn_it_is(phase: str, said: str) -> None:
    answer = httpx.Response(409, request=httpx.Request("POST", "https://job.invalid/dataset"))
    body = b'{"error":"wrong-phase","phase":%s}' % phase.encode()
    error = _parse_refusal(answer, body, "https://job.invalid")
    assert (error.code, error.exit_code) == (ErrorCode.WRONG_PHASE, 3)
    assert said in str(error)
