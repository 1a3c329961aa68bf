"""A real front process over a socket pair, with the supervisor's end in the test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.fork_server import ForkedProcess, ForkServer
from trainer.errors import JobError
from trainer.exchange.tls import PinnedContext
from trainer.ipc.front_messages import (
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    OpenUpload,
    Ready,
    ResultReady,
    Shutdown,
    StatusUpdate,
    SupervisorMessage,
    supervisor_channel,
)
from trainer.models import Phase, Status
from trainer.provider.transport.http_carrier import JobClient

QUICK = {
    "handshake_seconds": 1.0,
    "head_seconds": 1.0,
    "idle_seconds": 2,
    "block_seconds": 1.0,
    "linger_seconds": 0.5,
    "heartbeat_seconds": 0.3,
    "evidence_seconds": 1.0,
    "upload_idle_seconds": 1.0,
}

ACKNOWLEDGEMENT = "ac" * 32
ACKNOWLEDGEMENT_SHA256 = hashlib.sha256(ACKNOWLEDGEMENT.encode()).hexdigest()
"""Of every result that a test publishes."""

Message = TypeVar("Message")


class Front:
    """One front process, and a supervisor that answers evidence requests with `{"nonce": …}`."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        spool: Path,
        exchange: dict[str, Any],
        limits: dict[str, Any],
        server: ForkServer | None = None,
    ) -> None:
        self.spool = spool
        self.silent = False
        self.inbox: list[FrontMessage] = []
        self._news = threading.Condition()
        self._printed = os.fdopen(os.memfd_create("printed"), "w+b", buffering=0)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        options = [
            *(*arguments, "--spool", str(spool)),
            *("--settings-json", json.dumps({"host": "127.0.0.1", "port": 0, **exchange})),
            *("--limits-json", json.dumps({**QUICK, **limits})),
        ]
        self.process = self._start(options, theirs.fileno(), server)
        theirs.close()
        self.channel = supervisor_channel(ours)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _start(
        self, options: list[str], control: int, server: ForkServer | None
    ) -> subprocess.Popen[bytes] | ForkedProcess:
        """As the supervisor starts it, or forked by a server."""
        output = self._printed.fileno()
        options = [*options, "--control-fd", str(control)]
        if server is not None:
            return server.start("trainer.front", options, {1: output, 2: output, control: control})
        command = [sys.executable, "-m", "trainer.front", *options]
        return subprocess.Popen(command, pass_fds=[control], stdout=output, stderr=output)

    @property
    def ready(self) -> Ready:
        return self.expect(Ready, seconds=20)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ready.port}"

    def _listen(self) -> None:
        with contextlib.suppress(JobError, OSError):
            while (message := self.channel.receive()) is not None:
                if isinstance(message, EvidenceRequest) and not self.silent:
                    evidence = json.dumps({"nonce": message.nonce})
                    self.send(EvidenceReply(id=message.id, evidence=evidence, error=None))
                with self._news:
                    self.inbox.append(message)
                    self._news.notify_all()

    def send(self, *messages: SupervisorMessage) -> None:
        for message in messages:
            self.channel.send(message)

    def received(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.inbox if isinstance(message, kind)]

    def expect(self, kind: type[Message], *, count: int = 1, seconds: float = 5) -> Message:
        with self._news:
            arrived = self._news.wait_for(lambda: len(self.received(kind)) >= count, seconds)
        assert arrived, f"no {kind.__name__} from the front; got {self.inbox}"
        return self.received(kind)[count - 1]

    def http(self) -> httpx.Client:
        context = PinnedContext(self.ready.tls_spki_sha256)
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=10)

    def connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.ready.port), timeout=10)
        return PinnedContext(self.ready.tls_spki_sha256).wrap_socket(raw)

    def enter(self, phase: Phase, *, accept: bool | None = None) -> None:
        """Go to a phase and wait until the front knows."""
        if accept is not None:
            self.send(OpenUpload(accept=accept))
        self.send(StatusUpdate(status=Status(phase=phase)))
        with self.http() as http:
            for _ in range(200):
                if http.get("/status").json()["phase"] == phase:
                    return
                time.sleep(0.01)
        raise AssertionError("the front did not take the status")

    def publish_result(self, content: bytes, *, final: bool = True) -> str:
        (self.spool / "result.tar.age").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        shown = ACKNOWLEDGEMENT_SHA256
        self.send(
            ResultReady(
                size=len(content), sha256=digest, acknowledgement_sha256=(shown,), final=final
            )
        )
        self.enter(Phase.AWAITING_PULL)
        return digest

    def rss(self) -> int:
        """Resident bytes of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> str:
        """End the process; what it printed."""
        with contextlib.suppress(JobError):
            self.send(Shutdown())
        try:
            self.process.wait(20)
        except (subprocess.TimeoutExpired, TimeoutError):
            self.process.kill()
            self.process.wait(20)
            self._printed.write(b"\nkilled")
        self._thread.join()
        self.channel.close()
        with self._printed:
            self._printed.seek(0)
            return self._printed.read().decode()


StartFront = Callable[..., Front]


@pytest.fixture
def start_front(tmp_path: Path, fork_server: ForkServer) -> Iterator[StartFront]:
    """Start fronts; at the end each must have printed nothing. They are forked, or `started_anew`."""
    fronts: list[Front] = []

    def start(
        *arguments: str,
        exchange: dict[str, Any] | None = None,
        started_anew: bool = False,
        **limits: Any,
    ) -> Front:
        spool = tmp_path / f"spool{len(fronts)}"
        spool.mkdir(exist_ok=True)
        server = None if started_anew else fork_server
        fronts.append(Front(arguments, spool, exchange or {}, limits, server))
        return fronts[-1]

    yield start
    outputs = [front.stop() for front in fronts]
    assert outputs == [""] * len(fronts)


@pytest.fixture(scope="module")
def shared_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One front, awaiting a dataset, for all tests of a module that leave no upload and no other phase behind."""
    spool = tmp_path_factory.mktemp("spool")
    shared = Front((), spool, {}, {})
    try:
        shared.enter(Phase.AWAITING_DATASET, accept=True)
        yield shared
        assert list(spool.iterdir()) == []
    finally:
        output = shared.stop()
    assert output == ""


@pytest.fixture
def front(start_front: StartFront) -> Front:
    """A front with short times, awaiting a dataset."""
    front = start_front()
    front.enter(Phase.AWAITING_DATASET, accept=True)
    return front


class Relay:
    """Forwards TCP to a front; cuts a connection after so many bytes from the client or from the server."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut_up: list[int] = []
        self.cut_down: list[int] = []
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def retarget(self, port: int) -> None:
        self._target = port

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._target))
            up = self.cut_up.pop(0) if self.cut_up else None
            down = self.cut_down.pop(0) if self.cut_down else None
            for source, sink, limit in ((client, server, up), (server, client, down)):
                thread = threading.Thread(target=self._pump, args=(source, sink, limit))
                thread.start()
                self._threads.append(thread)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while (limit is None or passed < limit) and (block := source.recv(16384)):
                sink.sendall(block)
                passed += len(block)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def relay(front: Front, relay_to: Callable[[Front], Relay]) -> Relay:
    """A relay to `front`."""
    return relay_to(front)


@pytest.fixture
def client_of() -> Callable[..., JobClient]:
    """A client of a front that does not really wait."""

    def make(front: Front, url: str | None = None, **options: Any) -> JobClient:
        defaults = {
            "pinned_spki_sha256": front.ready.tls_spki_sha256,
            "timeout": 5,
            "sleep": lambda _: None,
        }
        return JobClient(url or front.url, **{**defaults, **options})

    return make


@pytest.fixture
def relay_to() -> Iterator[Callable[[Front], Relay]]:
    """Relays, ended with the test."""
    relays: list[Relay] = []

    def make(front: Front) -> Relay:
        relays.append(Relay(front.ready.port))
        return relays[-1]

    yield make
    for relay in relays:
        relay.close()
