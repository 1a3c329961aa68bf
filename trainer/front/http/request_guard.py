"""Middleware for every route: limits on headers, a time limit for each block of a response, no details of bugs."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.front.http.answers import SECURITY_HEADERS, refusal_response
from trainer.logs import private


class RequestGuard:
    """ASGI middleware around the application.

    Args:
        app: the application.
        limits: maximum number of headers, and the seconds in which a client has to read a block.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        always = _common_headers(scope["path"])

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *always]
            # `send` waits while the socket buffer is full: a client that does not read would block it for ever.
            async with asyncio.timeout(self._limits.block_seconds):
                await send(message)

        if (refusal := self._refusal([name for name, _ in scope["headers"]])) is not None:
            await refusal(scope, receive, send_in_time)
            return
        try:
            await self._app(scope, receive, send_in_time)
        except (ClientDisconnect, TimeoutError):
            return  # the client is gone or does not read; the server closes the connection
        except Exception as error:  # noqa: BLE001 -- the last handler: no detail may reach the client or a public log
            private.error("request failed: %s", type(error).__name__, exc_info=error)

    def _refusal(self, names: list[bytes]) -> Response | None:
        if len(names) > self._limits.headers:
            return refusal_response(431, ErrorCode.REQUEST_INVALID)
        if b"content-length" in names and b"transfer-encoding" in names:
            # Request smuggling: a proxy may have used the other of the two lengths (RFC 9112, section 6.1).
            return refusal_response(400, ErrorCode.REQUEST_INVALID, {"Connection": "close"})
        return None


def _common_headers(path: str) -> list[tuple[bytes, bytes]]:
    spoken = {"Tus-Resumable": "1.0.0"} if path == "/dataset" or path.startswith("/dataset/") else {}
    return [(name.lower().encode(), value.encode()) for name, value in {**SECURITY_HEADERS, **spoken}.items()]
