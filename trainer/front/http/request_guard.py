"""Middleware for every route: limits of heads, a time limit for each block of a response, no details of bugs."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.front.http.answers import SECURITY_HEADERS, refusal_response
from trainer.logs import private


class RequestGuard:
    """ASGI middleware around the application.

    Args:
        app: the application.
        limits: maximum size of a head and number of headers, and the seconds that a client has to read a block.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        names = [name for name, _ in scope["headers"]]
        app: ASGIApp = self._app
        if len(names) > self._limits.headers or _head_bytes(scope) > self._limits.head_bytes:
            app = refusal_response(431, ErrorCode.REQUEST_INVALID)
        elif b"content-length" in names and b"transfer-encoding" in names:
            # Request smuggling: a proxy may have used the other of the two lengths (RFC 9112, section 6.1).
            app = refusal_response(400, ErrorCode.REQUEST_INVALID, {"Connection": "close"})
        # tus 1.0 demands its version in every response below /dataset, refusals included.
        is_tus = scope["path"] == "/dataset" or scope["path"].startswith("/dataset/")
        common = {**SECURITY_HEADERS, **({"Tus-Resumable": "1.0.0"} if is_tus else {})}
        always = [(name.lower().encode(), value.encode()) for name, value in common.items()]

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *always]
            # `send` waits while the socket buffer is full: a client that does not read would block it for ever.
            async with asyncio.timeout(self._limits.block_seconds):
                await send(message)

        try:
            await app(scope, receive, send_in_time)
        except (ClientDisconnect, TimeoutError):
            return  # the client is gone or does not read; the server closes the connection
        except Exception as error:  # noqa: BLE001 -- the last handler: no detail may reach the client or a public log
            private.error("request failed: %s", type(error).__name__, exc_info=error)


def _head_bytes(scope: Scope) -> int:
    """Returns the size of the request line and all headers, without the spaces around values.

    h11 bounds a head only while it is incomplete: one that arrives in a single read may be larger.
    """
    line = len(scope["method"]) + len(scope["raw_path"]) + len(scope["query_string"])
    return line + sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])
