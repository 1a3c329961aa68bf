"""Caps below HTTP: connections, TLS handshakes, and clients that send a request line or a body drop by drop."""

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
    """How HTTP is spoken: by `CappedProtocol`, without WebSockets, logs, or headers that say what serves.

    Args:
        app: the application.
        limits: caps.
        context: TLS; None where something else ends it.
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


class StillServer(uvicorn.Server):
    """uvicorn looks ten times a second whether it is to end; this one waits to be told, and leaves cores alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    def end(self) -> None:
        """End it."""
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        """Serve until told to end."""
        await self.on_tick(0)
        await self._told.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came, at whatever point the loop is."""
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._told.set)


class CappedListener(socket.socket):
    """A listening socket that closes connections above a number, before anything is spent on them."""

    def __init__(self, family: int, cap: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._cap = cap
        self._open: set[socket.socket] = set()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: none is waiting, or it was one too many.
        """
        connection, address = super().accept()
        self._open = {known for known in self._open if known.fileno() >= 0}
        if len(self._open) >= self._cap:
            connection.close()
            raise BlockingIOError("too many connections")
        self._open.add(connection)
        return connection, address


def listen(host: str, port: int, cap: int) -> CappedListener:
    """Listen on an address; `port` 0 takes a free one.

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


def event_loop(limits: Limits) -> asyncio.AbstractEventLoop:
    """A loop whose TLS servers cut off handshakes that take too long."""
    return _FrontLoop(limits.handshake_seconds)


class _FrontLoop(asyncio.SelectorEventLoop):
    def __init__(self, handshake_seconds: float) -> None:
        super().__init__()
        self._handshake_seconds = handshake_seconds

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        if kwargs.get("ssl") is not None:
            seconds = self._handshake_seconds
            kwargs |= {"ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": seconds}
        return await super().create_server(*args, **kwargs)


def capped_protocol(limits: Limits) -> type[H11Protocol]:
    """The HTTP/1.1 protocol of uvicorn with the times of `limits`."""

    class _Capped(CappedProtocol):
        caps = limits

    return _Capped


class CappedProtocol(H11Protocol):
    """uvicorn times only the pause between requests; this also times heads, and bodies nobody reads."""

    caps: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The TLS handshake is done; a request line is awaited."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Bytes came; they may or may not complete a head."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_watching()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer is out; a client that is still sending a body gets a moment to read it, then is cut off."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._stop_watching()
            self._lingering = True
            self._head_timer = self.loop.call_later(self.caps.linger_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- its words are not sent
        """Answer bytes that are no HTTP, or a head that is too large; without uvicorn's words."""
        if self.conn.our_state is not h11.IDLE:  # garbage inside a body, while a route is answering
            self.transport.abort()
            return
        length = str(len(_BAD_REQUEST)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
        headers += [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
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
            self._head_timer = self.loop.call_later(self.caps.head_seconds, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._lingering = False
