"""`GET /result`: the sealed result, whole or one range of it, with its SHA-256 as a strong ETag (RFC 9110)."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.spool import RESULT_NAME
from trainer.front.http.answers import Refusal, documented, header
from trainer.front.http.control_client import ControlClient
from trainer.ipc.front_messages import ResultReady

_RANGE: Final = re.compile(r"bytes=(\d{0,16})-(\d{0,16})")
_BINARY: Final = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}

_STATE: Final = {
    "ETag": header('^"[0-9a-f]{64}"$', "SHA-256 of the sealed result"),
    "Accept-Ranges": header("^bytes$", "RFC 9110"),
}
_PART: Final = {"Content-Range": header(r"^bytes [0-9]+-[0-9]+/[0-9]+$", "which bytes, of how many")}

ShortHeader = Annotated[str | None, Header(max_length=256)]


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """First byte and end (exclusive) of a single byte range; None where the whole is to be sent.

    Several ranges and other units are answered with the whole, as RFC 9110 section 14.2 allows.

    Raises:
        Refusal: 416: no byte of the range exists.
    """
    match = _RANGE.fullmatch(text or "")
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None  # not a valid range: RFC 9110 section 14.1.1 says to ignore it
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise Refusal(416, ErrorCode.REQUEST_INVALID, {"Content-Range": f"bytes */{size}"})
    return start, end


class ResultRoutes:
    """The sealed result out of the spool."""

    def __init__(self, link: ControlClient, spool: Path, limits: Limits) -> None:
        self._link = link
        self._path = spool / RESULT_NAME
        self._limits = limits

    def router(self) -> APIRouter:
        """The route, documented with every answer it gives."""
        router = APIRouter(tags=["result"])
        router.add_api_route(
            "/result",
            self.result,
            methods=["GET"],
            response_class=Response,
            responses={
                200: {**_BINARY, "description": "the sealed result", "headers": _STATE},
                206: {**_BINARY, "description": "the range asked for", "headers": {**_STATE, **_PART}},
                304: {"description": "the client has it: `If-None-Match`", "headers": _STATE},
                **documented(
                    (409, ErrorCode.WRONG_PHASE),
                    (416, ErrorCode.REQUEST_INVALID),
                    headers={416: {"Content-Range": header(r"^bytes \*/[0-9]+$", "the size of the whole")}},
                ),
            },
        )
        return router

    async def result(
        self,
        range_: Annotated[str | None, Header(alias="Range", max_length=256)] = None,
        if_range: ShortHeader = None,
        if_none_match: ShortHeader = None,
    ) -> Response:
        """The sealed result: an age file for the grant's recipients."""
        ready = self._link.result
        if ready is None:
            raise Refusal(409, ErrorCode.WRONG_PHASE)
        etag = f'"{ready.sha256}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if if_none_match == etag:
            return Response(status_code=304, headers=headers)
        wanted = parse_range(range_, ready.size) if if_range in {None, etag} else None
        return self._answer(ready, wanted, headers)

    def _answer(self, ready: ResultReady, wanted: tuple[int, int] | None, headers: dict[str, str]) -> Response:
        start, end = wanted or (0, ready.size)
        headers["Content-Length"] = str(end - start)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{ready.size}"
        return StreamingResponse(
            self._blocks(start, end),
            status_code=200 if wanted is None else 206,
            media_type="application/octet-stream",
            headers=headers,
        )

    async def _blocks(self, start: int, end: int) -> AsyncIterator[bytes]:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while start < end:
                size = min(self._limits.block_bytes, end - start)
                block = await asyncio.to_thread(os.pread, descriptor, size, start)
                if not block:
                    raise OSError("the sealed result became shorter")
                yield block
                start += len(block)
        finally:
            os.close(descriptor)
