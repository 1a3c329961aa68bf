"""`GET /result`: the sealed result or one byte range of it, with its SHA-256 as a strong ETag (RFC 9110)."""

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
from trainer.front.http.answers import RequestRefused, documented_responses, header_schema
from trainer.front.http.control_client import ControlClient

_RANGE: Final = re.compile(r"bytes=(\d{0,16})-(\d{0,16})")
_BINARY: Final = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}

_STATE: Final = {
    "ETag": header_schema('^"[0-9a-f]{64}"$', "SHA-256 of the sealed result"),
    "Accept-Ranges": header_schema("^bytes$", "RFC 9110"),
}
_PART: Final = {
    "Content-Range": header_schema(r"^bytes [0-9]+-[0-9]+/[0-9]+$", "which bytes, of how many")
}

ShortHeader = Annotated[str | None, Header(max_length=256)]


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Returns first byte and end (exclusive) of a single byte range; None if all bytes are to be sent.

    Several ranges and other units get all bytes, as RFC 9110 section 14.2 allows.

    Raises:
        RequestRefused: 416: no byte of the range exists.
    """
    match = _RANGE.fullmatch(text or "")
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None  # an invalid range; RFC 9110 section 14.1.1 requires to ignore it
    # `bytes=-N` requests the last N bytes; `last` is inclusive in the header and exclusive in the result.
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise RequestRefused(416, ErrorCode.REQUEST_INVALID, {"Content-Range": f"bytes */{size}"})
    return start, end


class ResultRoutes:
    """Serves the sealed result from the spool."""

    def __init__(self, control: ControlClient, spool: Path, limits: Limits) -> None:
        self._control = control
        self._path = spool / RESULT_NAME
        self._limits = limits

    def router(self) -> APIRouter:
        """Returns the route with the documentation of all its responses."""
        router = APIRouter(tags=["result"])
        router.add_api_route(
            "/result",
            self.result,
            methods=["GET"],
            response_class=Response,
            responses={
                200: {**_BINARY, "description": "the sealed result", "headers": _STATE},
                206: {
                    **_BINARY,
                    "description": "the range asked for",
                    "headers": {**_STATE, **_PART},
                },
                304: {"description": "the client has it: `If-None-Match`", "headers": _STATE},
                **documented_responses(
                    (409, ErrorCode.WRONG_PHASE),
                    (416, ErrorCode.REQUEST_INVALID),
                    headers={
                        416: {
                            "Content-Range": header_schema(
                                r"^bytes \*/[0-9]+$", "the size of the sealed result"
                            )
                        }
                    },
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
        """Returns the sealed result, an age file for the grant's recipients, or a range of it."""
        ready = self._control.result
        if ready is None:
            raise RequestRefused(409, ErrorCode.WRONG_PHASE)
        etag = f'"{ready.sha256}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if if_none_match == etag:
            return Response(status_code=304, headers=headers)
        # `If-Range` with another ETag: the range is of another result, so all bytes are sent (RFC 9110, 13.1.5).
        wanted = parse_range(range_, ready.size) if if_range in {None, etag} else None
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
        # No link: a writer of the directory could make the front send any other file that it can read.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while start < end:
                size = min(self._limits.block_bytes, end - start)
                block = await asyncio.to_thread(os.pread, descriptor, size, start)
                if not block:
                    # Content-Length is sent already; only a closed connection can signal the error.
                    raise OSError("the sealed result became shorter")
                yield block
                start += len(block)
        finally:
            os.close(descriptor)
