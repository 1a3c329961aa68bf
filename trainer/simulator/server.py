"""HTTP server of the simulated guest agent on a unix socket, for dstack's clients: `POST /Method` with JSON."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, UsageError
from trainer.simulator.agent import SimulatedVm, VmOptions
from trainer.simulator.rpc import (
    REVISION,
    CallError,
    GuestAgentRpc,
    MethodNotFoundError,
    RpcResponse,
)
from trainer.simulator.state import open_vm, publish

MAX_BODY_BYTES: Final = 1 << 20
MAX_SOCKET_PATH_BYTES: Final = 107
"""`sockaddr_un.sun_path` on Linux, less its final zero."""

_CLIENT_TIMEOUT_SECONDS: Final = 10.0
_PROBE_TIMEOUT_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.02
_DEFAULTS: Final = VmOptions()


@contextmanager
def simulated_agent_server(path: Path, vm: SimulatedVm) -> Iterator[None]:
    """Serves one VM on a unix socket from a background thread until the context ends.

    Args:
        path: socket to listen on; a socket file without a listening process is removed first.
        vm: the VM.

    Raises:
        UsageError: another agent listens on `path`, a file that is no socket exists there, or the path is too
            long.
    """
    _free_socket_path(path)
    server = _UnixHttpServer(path, GuestAgentRpc(vm))
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve(
    socket: Path,
    state: Path,
    app_compose: str,
    *,
    stop: threading.Event | None = None,
    options: VmOptions = _DEFAULTS,
    clock: Callable[[], int] = lambda: int(time.time()),
    started: Callable[[SimulatedVm], None] | None = None,
) -> None:
    """Serves a simulated VM until `stop` is set; without one, until the process is interrupted.

    Args:
        socket: path of the unix socket to listen on.
        state: directory of the VM's seed; the files that a verifier needs are written there.
        app_compose: exact text of app-compose.json.
        stop: ends serving.
        options: how the VM is set up.
        clock: seconds since 1970.
        started: called once the socket answers.

    Raises:
        UsageError: state, socket path or app-compose are not usable.
    """
    vm = open_vm(state, app_compose, options)
    with simulated_agent_server(socket, vm):
        publish(vm, state, clock())
        if started is not None:
            started(vm)
        (stop or threading.Event()).wait()


def _free_socket_path(path: Path) -> None:
    """Checks that `path` is free, and removes the socket file of an agent that no longer runs."""
    if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
        raise UsageError(
            ErrorCode.USAGE,
            f"socket path {path}",
            expected=f"at most {MAX_SOCKET_PATH_BYTES} bytes",
            found=len(bytes(path)),
            hint="choose a shorter path, for example below /run or /tmp",
        )
    if path.is_socket():
        _remove_if_stale(path)
    elif path.exists():
        raise UsageError(
            ErrorCode.OUTPUT_EXISTS, f"{path} exists and is not a socket; it is left alone"
        )


def _remove_if_stale(path: Path) -> None:
    # A socket file outlives its process: only a refused connection shows that nobody listens on it.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise UsageError(
                ErrorCode.USAGE, f"{path} cannot be probed: {error.strerror}"
            ) from error
    raise UsageError(
        ErrorCode.USAGE,
        f"another agent answers on {path}",
        hint="stop it first, or choose another --socket",
    )


class _UnixHttpServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, rpc: GuestAgentRpc) -> None:
        super().__init__(str(path), _Handler, bind_and_activate=False)
        self.rpc = rpc
        self._path = path
        try:
            self.server_bind()
            path.chmod(0o600)  # before listen(): whoever can connect gets the VM's keys
            self.server_activate()
        except OSError as error:
            super().server_close()
            raise UsageError(
                ErrorCode.USAGE, f"cannot listen on {path}: {error.strerror}"
            ) from error

    def server_close(self) -> None:
        """Stops listening and removes the socket."""
        super().server_close()
        self._path.unlink(missing_ok=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: a client that disconnects is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = REVISION
    sys_version = ""
    timeout = _CLIENT_TIMEOUT_SECONDS
    server: _UnixHttpServer

    def do_POST(self) -> None:
        """Answers one call: 200, 400 for invalid arguments, 404 for an unknown method."""
        body = self._read_body()
        if body is None:
            return
        method = self.path.partition("?")[0].removeprefix("/")
        try:
            self._answer(200, self.server.rpc.call(method, body))
        except MethodNotFoundError:
            self._answer(404, {"error": "method not found"})
        except CallError as error:
            self._answer(400, {"error": str(error)})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses the request with JSON and closes the connection, whose next bytes may not be a request."""
        del explain
        self.close_connection = True
        self._answer(code, {"error": message or self.responses.get(code, ("error", ""))[0]})

    def address_string(self) -> str:
        """Returns a fixed name: a unix socket has no client address."""
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Logs nothing: requests contain key paths, and responses contain keys."""

    def _read_body(self) -> bytes | None:
        text = self.headers.get("Content-Length", "")
        # The limit on digits precedes int(): converting a very long number takes quadratic time.
        if not text.isascii() or not text.isdigit() or "Transfer-Encoding" in self.headers:
            self.send_error(411, "a Content-Length is required")
        elif len(text) > len(str(MAX_BODY_BYTES)) or int(text) > MAX_BODY_BYTES:
            self.send_error(413, f"the body may have at most {MAX_BODY_BYTES} bytes")
        elif len(body := self.rfile.read(int(text))) < int(text):
            self.send_error(400, "the body is shorter than its Content-Length")
        else:
            return body
        return None

    def _answer(self, status: int, answer: RpcResponse) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
