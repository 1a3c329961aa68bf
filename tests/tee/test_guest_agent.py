"""The client against the real simulated agent, and against agents that are absent, slow or talk nonsense."""

import gc
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coincurve
import pytest
from Crypto.Hash import keccak

from trainer.errors import ErrorCode, UnavailableError
from trainer.simulator.agent import SimulatedVm, VmOptions
from trainer.simulator.server import simulated_agent_server
from trainer.tee.guest_agent import GuestAgent

REPORT_DATA = bytes(range(64))
SECRET_TEXT = "5ec2e7" * 10 + "5ec2"  # 64 hex digits that must not be quoted in an error

Answer = bytes | None
"""A whole HTTP response, or None to say nothing at all."""


def http(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (status, len(body)) + body


@pytest.fixture
def canned(socket_path: Path) -> Iterator[Callable[[Answer], str]]:
    """Starts an agent that reads a request and gives one fixed answer to it; returns its socket."""
    release = threading.Event()
    servers: list[socketserver.ThreadingUnixStreamServer] = []

    def start(answer: Answer) -> str:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.connection.settimeout(5)
                length = 0
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                self.rfile.read(length)
                if answer is None:
                    release.wait(10)
                else:
                    self.wfile.write(answer)

        server = socketserver.ThreadingUnixStreamServer(str(socket_path), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return str(socket_path)

    yield start
    release.set()
    for server in servers:
        server.shutdown()
        server.server_close()


CALLS: dict[str, Callable[[GuestAgent], object]] = {
    "Info": GuestAgent.info,
    "GetKey": lambda agent: agent.derive_key("path", "purpose"),
    "GetQuote": lambda agent: agent.quote(REPORT_DATA),
    "GpuInfo": GuestAgent.gpu_attestation,
    "Version": GuestAgent.version,
}


def test_info(endpoint: str, vm: SimulatedVm, compose: str) -> None:
    info = GuestAgent(endpoint).info()
    assert info.app_compose == compose
    assert info.app_id == vm.app_id.hex()
    assert info.instance_id == vm.instance_id.hex()
    assert info.vm_config == vm.vm_config


def test_derived_key_comes_with_its_proof(endpoint: str, vm: SimulatedVm) -> None:
    derived = GuestAgent(endpoint).derive_key("path", "purpose")
    assert derived.secret == vm.keys.derive("path").secret
    assert derived.public_key == coincurve.PrivateKey(derived.secret).public_key.format().hex()
    digest = keccak.new(digest_bits=256, data=f"purpose:{derived.public_key}".encode()).digest()
    signature = bytes.fromhex(derived.signature)
    signer = coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None)
    assert signer.format() == vm.keys.public_key


def test_secret_is_not_shown(endpoint: str) -> None:
    derived = GuestAgent(endpoint).derive_key("path", "purpose")
    assert derived.secret.hex() not in repr(derived)
    assert repr(derived.secret) not in repr(derived)


def test_quote(endpoint: str, vm: SimulatedVm, judge: Callable[..., dict[str, Any]]) -> None:
    quote = GuestAgent(endpoint).quote(REPORT_DATA)
    assert judge(quote.quote, vm.pki)["report"]["TD10"]["report_data"] == REPORT_DATA.hex()
    assert quote.event_log == vm.event_log()
    assert quote.vm_config == vm.vm_config


@pytest.mark.parametrize("length", [0, 63, 65])
def test_report_data_is_64_bytes(endpoint: str, length: int) -> None:
    with pytest.raises(ValueError, match=f"expected 64 bytes, got {length}"):
        GuestAgent(endpoint).quote(bytes(length))


def test_gpu_attestation_is_exact(compose: str, seed: bytes, socket_path: Path) -> None:
    text = '{"a": "é\\n"}\r\n\n'
    vm = SimulatedVm(compose, seed, options=VmOptions(gpu_attestation=text))
    with simulated_agent_server(socket_path, vm):
        assert GuestAgent(str(socket_path)).gpu_attestation() == text


def test_release_without_gpu_info(old_endpoint: str) -> None:
    assert GuestAgent(old_endpoint).gpu_attestation() == ""
    assert GuestAgent(old_endpoint).version() == "0.5.11-DEVELOPMENT"


@pytest.mark.parametrize("method", ["GpuInfo", "Version"])
@pytest.mark.parametrize(
    "answer",
    [http(b"", b"404 Not Found"), http(b'{"error": "Method not found: x"}', b"400 Bad Request")],
)
def test_methods_that_older_releases_lack(
    canned: Callable[[Answer], str], answer: bytes, method: str
) -> None:
    assert CALLS[method](GuestAgent(canned(answer))) == ""


@pytest.mark.parametrize(
    "status", [b"400 Bad Request", b"500 Internal Server Error", b"403 Forbidden"]
)
def test_failing_gpu_info_is_not_taken_for_absent(
    canned: Callable[[Answer], str], status: bytes
) -> None:
    agent = GuestAgent(canned(http(b'{"error": "disk broke"}', status)))
    with pytest.raises(UnavailableError) as caught:
        agent.gpu_attestation()
    assert caught.value.code is ErrorCode.GUEST_AGENT_PROTOCOL
    assert str(caught.value.found) == status[:3].decode()


def test_no_socket(socket_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        GuestAgent(str(socket_path))
    assert caught.value.code is ErrorCode.GUEST_AGENT_UNAVAILABLE
    assert str(socket_path) in str(caught.value)
    assert "trainer simulate" in str(caught.value.hint)
    assert "/var/run/dstack.sock" in str(caught.value.hint)


def test_endpoint_of_the_environment(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, compose: str
) -> None:
    monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", endpoint)
    assert GuestAgent().info().app_compose == compose
    assert GuestAgent().gpu_attestation() == ""


# Httpcore drops a socket that cannot connect.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("method", CALLS)
def test_agent_that_died(socket_path: Path, vm: SimulatedVm, method: str) -> None:
    with simulated_agent_server(socket_path, vm):
        agent = GuestAgent(str(socket_path))
    with pytest.raises(UnavailableError) as caught:
        CALLS[method](agent)
    assert caught.value.code is ErrorCode.GUEST_AGENT_UNAVAILABLE
    del caught
    gc.collect()  # while the warning is expected


@pytest.mark.parametrize("method", CALLS)
def test_slow_agent(canned: Callable[[Answer], str], method: str) -> None:
    agent = GuestAgent(canned(None), timeout=0.2)
    with pytest.raises(UnavailableError, match=r"no answer within 0\.2 seconds") as caught:
        CALLS[method](agent)
    assert caught.value.code is ErrorCode.GUEST_AGENT_UNAVAILABLE


GARBAGE = {
    "not HTTP": b"\x00\x01garbage\r\n\r\n",
    "nothing": b"",
    "short body": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    "not JSON": http(SECRET_TEXT.encode()),
    "not UTF-8": http(b"\xff\xfe\xff"),
    "an array": http(b"[]"),
    "null": http(b"null"),
    "a number": http(b"1"),
    "nothing in it": http(b"{}"),
    "too deep": http(b"[" * 100_000),
    "wrong types": http(
        json.dumps(
            {
                "key": [SECRET_TEXT],
                "signature_chain": SECRET_TEXT,
                "quote": 1,
                "event_log": 2,
                "tcb_info": "null",
                "attestation": 3,
                "version": None,
            }
        ).encode()
    ),
    "server error": http(SECRET_TEXT.encode(), b"500 Internal Server Error"),
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://localhost/x\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(canned: Callable[[Answer], str], what: str, method: str) -> None:
    agent = GuestAgent(canned(GARBAGE[what]), timeout=5)
    with pytest.raises(UnavailableError) as caught:
        CALLS[method](agent)
    error = caught.value
    assert error.code is ErrorCode.GUEST_AGENT_PROTOCOL
    assert method in error.message
    assert error.__cause__ is None
    assert SECRET_TEXT[:12] not in f"{error} {error.hint} {error.found}"


CHAIN = ["ab" * 65] * 2


@pytest.mark.parametrize(
    "answer",
    [
        {"key": "00" * 32, "signature_chain": CHAIN},
        {"key": "ff" * 32, "signature_chain": CHAIN},
        {"key": SECRET_TEXT[:-2], "signature_chain": CHAIN},
        {"key": SECRET_TEXT + "00", "signature_chain": CHAIN},
        {"key": "zz" * 32, "signature_chain": CHAIN},
        {"key": SECRET_TEXT, "signature_chain": ["ab" * 64]},
        {"key": SECRET_TEXT, "signature_chain": CHAIN * 3},
        {"key": SECRET_TEXT, "signature_chain": []},
        {"key": SECRET_TEXT, "signature_chain": ["", "ab" * 65]},
        {"key": SECRET_TEXT, "signature_chain": ["ab" * 65, "ab" * 64]},
        {"key": SECRET_TEXT, "signature_chain": ["AB" * 65, "ab" * 65]},
    ],
)
def test_keys_that_are_none(canned: Callable[[Answer], str], answer: dict[str, Any]) -> None:
    agent = GuestAgent(canned(http(json.dumps(answer).encode())))
    with pytest.raises(UnavailableError) as caught:
        agent.derive_key("path", "purpose")
    assert caught.value.code is ErrorCode.GUEST_AGENT_PROTOCOL
    assert SECRET_TEXT[:12] not in f"{caught.value} {caught.value.found}"


def test_quote_over_something_else(canned: Callable[[Answer], str], vm: SimulatedVm) -> None:
    answer = {"quote": vm.quote(b"other").quote.hex(), "event_log": "[]", "vm_config": ""}
    with pytest.raises(UnavailableError) as caught:
        GuestAgent(canned(http(json.dumps(answer).encode()))).quote(REPORT_DATA)
    assert caught.value.code is ErrorCode.GUEST_AGENT_PROTOCOL


def test_gpu_attestation_has_a_limit(canned: Callable[[Answer], str]) -> None:
    answer = http(json.dumps({"attestation": "x" * ((4 << 20) + 1)}).encode())
    with pytest.raises(UnavailableError, match="at most 4194304 characters"):
        GuestAgent(canned(answer)).gpu_attestation()
