"""Limits below HTTP: number of connections, time of a TLS handshake, time of a request head and of an unread body.

Without them a client could hold sockets and memory for ever by sending a few bytes now and then (Slowloris).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from types import FrameType
from typing import Any, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.front.http.answers import SECURITY_HEADERS

_GRACEFUL_SECONDS: Final = 8
_BAD_REQUEST = b'{"error":"' + ErrorCode.REQUEST_INVALID.value.encode() + b'"}'


def http_config(app: ASGIApp, limits: Limits, context: ssl.SSLContext | None) -> uvicorn.Config:
    """Returns uvicorn's configuration: `CappedProtocol`, no WebSockets, no logs, no `Server` or `Date` header.

    Args:
        app: the application.
        limits: limits on sizes, times and counts.
        context: TLS context; None serves plain HTTP.
    """
    return uvicorn.Config(
        app,
        loop="none",
        http=capped_protocol(limits),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
        h11_max_incomplete_event_size=limits.head_bytes,
        ssl_context_factory=None if context is None else lambda *_: context,
    )


class EventDrivenServer(uvicorn.Server):
    """A uvicorn server that waits for an event to end, where uvicorn polls a flag ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._end_requested = asyncio.Event()

    def end(self) -> None:
        """Asks the server to finish its responses and stop."""
        self.should_exit = True
        self._end_requested.set()

    async def main_loop(self) -> None:
        """Serves until `end` is called or a signal arrives."""
        await self.on_tick(0)
        await self._end_requested.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal; it may interrupt the loop at any point, hence `call_soon_threadsafe`."""
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._end_requested.set)


class CappedListener(socket.socket):
    """A listening socket that closes connections above a maximum number before TLS handshakes use CPU time."""

    def __init__(self, family: int, cap: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._cap = cap
        self._open: set[socket.socket] = set()

    def accept(self) -> tuple[socket.socket, Any]:
        """Returns the next connection and its address.

        Raises:
            BlockingIOError: no connection is waiting, or the maximum is reached and the connection was closed.
        """
        connection, address = super().accept()
        # A closed socket has the descriptor -1; uvicorn reports no close to the listener.
        self._open = {known for known in self._open if known.fileno() >= 0}
        if len(self._open) >= self._cap:
            connection.close()
            raise BlockingIOError("too many connections")
        self._open.add(connection)
        return connection, address


def open_listener(host: str, port: int, cap: int) -> CappedListener:
    """Returns a listening socket on an address; `port` 0 selects a free port.

    Raises:
        OSError: the address is not available.
    """
    listener = CappedListener(socket.AF_INET6 if ":" in host else socket.AF_INET, cap)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(min(cap, 128))
    except OSError:
        listener.close()
        raise
    return listener


class HandshakeLimitLoop(asyncio.SelectorEventLoop):
    """An event loop that aborts TLS handshakes above the time limit; uvicorn has no option for it."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._handshake_seconds = limits.handshake_seconds

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        """Creates a server; one with TLS gets the time limit for the handshake and for the closing of TLS."""
        if kwargs.get("ssl") is not None:
            seconds = self._handshake_seconds
            kwargs |= {"ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": seconds}
        return await super().create_server(*args, **kwargs)


def capped_protocol(limits: Limits) -> type[H11Protocol]:
    """Returns the class of the HTTP/1.1 protocol with the time limits of `limits`."""

    class _ProtocolWithLimits(CappedProtocol):
        caps = limits

    return _ProtocolWithLimits


class CappedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit for each request head and for a body that no route reads.

    uvicorn limits only the pause between two requests.
    """

    caps: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timer of the first head, after the TLS handshake."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Parses the bytes, then starts or stops the timer of the head."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer of a closed connection."""
        self._stop_watching()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Aborts the connection after `linger_seconds` if the client is still sending its body."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            # An immediate abort resets the connection, and the client loses the refusal before it can read it.
            self._stop_watching()
            self._lingering = True
            self._head_timer = self.loop.call_later(self.caps.linger_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- the text is not sent
        """Answers bytes that are not HTTP, or a head that is too large, without the text of uvicorn."""
        # Invalid chunks inside a body, while a route is answering: a second response would corrupt the first.
        if self.conn.our_state is not h11.IDLE:
            self.transport.abort()
            return
        length = str(len(_BAD_REQUEST)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", length),
            (b"connection", b"close"),
        ]
        headers += [
            (name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()
        ]
        head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=_BAD_REQUEST), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_head(self) -> None:
        if self._lingering and self.conn.their_state is h11.SEND_BODY:
            return
        if self._lingering or self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_watching()
        elif self._head_timer is None:
            # One timer for the complete head: a slow client could exploit one that restarts with each byte.
            self._head_timer = self.loop.call_later(self.caps.head_seconds, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._lingering = False
