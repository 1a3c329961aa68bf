"""What stands before every route: caps on headers, a time for every piece of an answer, and no words on bugs."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.server.answers import refused
from trainer.logs import private


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        limits: number of headers, and how long a client may take to read a block.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._limits.block_seconds):
                await send(message)

        if len(scope["headers"]) > self._limits.headers:
            await refused(431, ErrorCode.REQUEST_INVALID)(scope, receive, send_in_time)
            return
        try:
            await self._app(scope, receive, send_in_time)
        except (ClientDisconnect, TimeoutError):
            return  # gone or not reading; the server closes the connection
        except Exception as error:  # noqa: BLE001 -- the last stop: nothing may reach the client or a log outside
            private.error("request failed: %s", type(error).__name__, exc_info=error)
