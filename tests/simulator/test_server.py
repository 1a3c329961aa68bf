"""The real server on a unix socket: dstack's own client for every method, then what no client should send."""

import hashlib
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from dstack_sdk import DstackClient

from trainer.errors import ErrorCode, UsageError
from trainer.simulator.agent import SimulatedVm
from trainer.simulator.server import MAX_BODY_BYTES, serve, simulated_agent_server


@contextmanager
def connected(endpoint: str) -> Iterator[DstackClient]:
    """dstack's client; entering it gives another object, so it is used by its first name."""
    client = DstackClient(endpoint)
    with client:
        yield client


@pytest.fixture
def client(endpoint: str) -> Iterator[DstackClient]:
    with connected(endpoint) as client:
        yield client


def post(endpoint: str, method: str, content: bytes = b"{}", **headers: str) -> httpx.Response:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=endpoint), base_url="http://localhost"
    ) as client:
        return client.post(f"/{method}", content=content, headers=headers)


def raw(endpoint: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(endpoint)
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(65536):
            answer += block
        return answer


def test_info(client: DstackClient, vm: SimulatedVm, compose: str) -> None:
    info = client.info()
    assert info.tcb_info.app_compose == compose
    assert (
        info.compose_hash
        == info.tcb_info.compose_hash
        == hashlib.sha256(compose.encode()).hexdigest()
    )
    assert info.app_id == vm.app_id.hex() == info.compose_hash[:40]
    assert info.app_name == "demo"
    assert info.tcb_info.rtmr3 == vm.td_fields().rtmr3.hex()
    assert [e.event for e in info.tcb_info.event_log if e.imr == 3][-1] == "system-ready"
    assert json.loads(info.key_provider_info)["name"] == "none"
    assert json.loads(info.vm_config)["image"] == "DEVELOPMENT-simulated-not-a-tee"


def test_get_quote(
    client: DstackClient, vm: SimulatedVm, judge: Callable[..., dict[str, Any]]
) -> None:
    answer = client.get_quote(b"\x01" * 20)
    report = judge(answer.decode_quote(), vm.pki)["report"]["TD10"]
    assert report["report_data"] == answer.report_data == "01" * 20 + "00" * 44
    assert report["rt_mr3"] == vm.td_fields().rtmr3.hex()
    assert answer.event_log == vm.event_log()


def test_get_key(client: DstackClient, vm: SimulatedVm) -> None:
    answer = client.get_key("path", "purpose")
    derived = vm.keys.derive("path", "purpose")
    assert answer.decode_key() == derived.secret
    assert tuple(answer.decode_signature_chain()) == derived.signature_chain
    assert client.get_key("path", "purpose", "ed25519").decode_key() == derived.secret


def test_version(client: DstackClient) -> None:
    assert client.version().version == "0.6.0-DEVELOPMENT"
    assert "DEVELOPMENT" in client.version().rev


def test_reachable(client: DstackClient) -> None:
    assert client.is_reachable()


def test_gpu_info_is_of_the_new_release(endpoint: str) -> None:
    assert post(endpoint, "GpuInfo").json() == {"attestation": ""}


def test_gpu_info_is_not_of_the_old_release(old_endpoint: str) -> None:
    assert post(old_endpoint, "GpuInfo").status_code == 404


# Calls of dstack's that no job makes.
NOT_SIMULATED = (
    "Attest",
    "GetTlsKey",
    "Sign",
    "Verify",
    "EmitEvent",
)


@pytest.mark.parametrize(
    "method", [*NOT_SIMULATED, "Nothing", "", "info", "x/Info", "__init__", "call"]
)
def test_unknown_method(endpoint: str, method: str) -> None:
    response = post(endpoint, method)
    assert response.status_code == 404
    assert response.json() == {"error": "method not found"}


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("GetQuote", b"not json"),
        ("GetQuote", b"[]"),
        ("GetQuote", b'{"report_data": "0"}'),
        ("GetQuote", b'{"report_data": "' + b"00" * 65 + b'"}'),
        ("GetQuote", b'{"report_data": 1}'),
        ("GetKey", b'{"algorithm": "rsa"}'),
        ("GetKey", b'{"path": {}}'),
        ("Info", b"[" * 100_000),
        ("Info", b"\xff"),
    ],
)
def test_bad_arguments(endpoint: str, method: str, body: bytes) -> None:
    response = post(endpoint, method, body)
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)


def test_body_has_a_limit(endpoint: str) -> None:
    padding = b" " * (MAX_BODY_BYTES - 2)
    assert post(endpoint, "Version", b"{}" + padding).status_code == 200
    assert post(endpoint, "Version", b"{}" + padding + b" ").status_code == 413


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 99999999999999999999\r\n", b"413"),
        (b"Content-Length: -1\r\n", b"411"),
        (b"Content-Length: 1_0\r\n", b"411"),
        (b"Transfer-Encoding: chunked\r\n", b"411"),
        (b"", b"411"),
        (b"Content-Length: 10\r\n", b"400"),
    ],
)
def test_framing_that_is_refused(endpoint: str, head: bytes, status: bytes) -> None:
    answer = raw(endpoint, b"POST /Version HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n{}")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'{"error":' in answer
    assert b"Connection: close" in answer


def test_other_verbs_are_refused(endpoint: str) -> None:
    assert raw(endpoint, b"GET /Info HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 501")


def test_calls_in_parallel(endpoint: str) -> None:
    def ask(index: int) -> str:
        with connected(endpoint) as client:
            return str(client.get_quote(bytes([index] * 8)).report_data[:2])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(1, 17))) == [f"{index:02x}" for index in range(1, 17)]


def test_socket_is_private_and_goes_away(socket_path: Path, vm: SimulatedVm) -> None:
    with simulated_agent_server(socket_path, vm):
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert not socket_path.exists()


def test_living_agent_is_not_replaced(endpoint: str, vm: SimulatedVm) -> None:
    with (
        pytest.raises(UsageError, match="another agent answers"),
        simulated_agent_server(Path(endpoint), vm),
    ):
        pass
    with connected(endpoint) as client:
        assert client.is_reachable()


def test_stale_socket_is_removed(socket_path: Path, vm: SimulatedVm) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    assert socket_path.is_socket()
    with simulated_agent_server(socket_path, vm), connected(str(socket_path)) as client:
        assert client.is_reachable()


def test_other_files_are_left_alone(socket_path: Path, vm: SimulatedVm) -> None:
    socket_path.write_text("mine")
    with pytest.raises(UsageError) as caught, simulated_agent_server(socket_path, vm):
        pass
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert socket_path.read_text() == "mine"


def test_long_path_is_refused(tmp_path: Path, vm: SimulatedVm) -> None:
    with (
        pytest.raises(UsageError, match="at most 107 bytes"),
        simulated_agent_server(tmp_path / ("x" * 108), vm),
    ):
        pass


def test_absent_directory_is_an_error(socket_path: Path, vm: SimulatedVm) -> None:
    with (
        pytest.raises(UsageError, match="cannot listen"),
        simulated_agent_server(socket_path.parent / "absent" / "agent.sock", vm),
    ):
        pass


def test_serve_until_stopped(socket_path: Path, tmp_path: Path, compose: str) -> None:
    stop, started = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve,
        args=(socket_path, tmp_path / "state", compose),
        kwargs={"stop": stop, "started": lambda _: started.set()},
    )
    thread.start()
    try:
        assert started.wait(10)
        with connected(str(socket_path)) as client:
            assert client.info().tcb_info.app_compose == compose
        assert (tmp_path / "state" / "root.pem").exists()
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert not socket_path.exists()
