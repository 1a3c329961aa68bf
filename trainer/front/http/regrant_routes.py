"""The route of re-grants: `/regrant`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.spool import REGRANT_NAME, SpoolDirectory
from trainer.front.http.answers import RequestRefused, documented_responses, header_schema
from trainer.front.http.control_client import ControlClient
from trainer.models import MAX_REGRANT_BYTES

CONTENT_TYPE: Final = "application/json"

_RETRY: Final = {"Retry-After": header_schema("^[1-9][0-9]*$", "seconds")}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {CONTENT_TYPE: {"schema": {"type": "object"}}},
        "description": "a re-grant, as trainer/SPEC.md describes it",
    }
}


class RegrantRoutes:
    """Takes re-grants while the supervisor waits for one."""

    def __init__(self, control: ControlClient, spool: Path, limits: Limits) -> None:
        self._control = control
        self._spool = SpoolDirectory(spool)
        self._limits = limits

    def router(self) -> APIRouter:
        """Returns the route with the documentation of all its responses."""
        router = APIRouter(tags=["dataset"])
        router.add_api_route(
            "/regrant",
            self.regrant,
            methods=["POST"],
            status_code=202,
            response_class=Response,
            responses=documented_responses(
                (408, ErrorCode.TIMEOUT),
                (409, ErrorCode.WRONG_PHASE),
                (413, ErrorCode.REQUEST_INVALID),
                (415, ErrorCode.REQUEST_INVALID),
                (429, ErrorCode.TOO_MANY_REQUESTS),
                (507, ErrorCode.STORAGE_FULL),
                headers={429: _RETRY},
            ),
            openapi_extra=_BODY,
        )
        return router

    async def regrant(
        self,
        request: Request,
        content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Response:
        """Takes the re-grant of a dataset that the job kept over a restart. The status says what came of it."""
        if content_type != CONTENT_TYPE:
            raise RequestRefused(415, ErrorCode.REQUEST_INVALID)
        self._control.require_regrant_accepted()
        body = await self._read_body(request)
        if not self._control.accepts_regrant:  # another one arrived while this body was read
            raise RequestRefused(409, ErrorCode.WRONG_PHASE)
        try:
            self._spool.move_directory_aside(REGRANT_NAME)
            self._spool.put(REGRANT_NAME, body)
        except OSError as error:
            raise RequestRefused(507, ErrorCode.STORAGE_FULL) from error
        await self._control.report_regrant()
        return Response(status_code=202)

    async def _read_body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.block_seconds):
                async for block in request.stream():
                    body += block
                    if len(body) > MAX_REGRANT_BYTES:
                        raise RequestRefused(413, ErrorCode.REQUEST_INVALID)
        except TimeoutError:
            raise RequestRefused(408, ErrorCode.TIMEOUT) from None
        return bytes(body)
