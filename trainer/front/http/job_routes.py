"""Routes about the job: `/attestation`, `/status`, `/events`, `/ack`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from trainer.attestation.evidence import Evidence
from trainer.errors import ErrorCode
from trainer.exchange.limits import DELETION_TYPE, Limits
from trainer.front.http.answers import Refusal, documented, header
from trainer.front.http.control_client import EVIDENCE_ERRORS, ControlClient
from trainer.ipc.front_messages import Acknowledged
from trainer.models import Status

TOKEN_SCHEME: Final = "grantToken"  # noqa: S105 -- a name
"""Name of the security scheme in the OpenAPI document."""

_BEARER: Final = "Bearer "
_RETRY: Final = {"Retry-After": header("^[1-9][0-9]*$", "seconds")}
_CHALLENGE: Final = {"WWW-Authenticate": header("^Bearer$", "RFC 6750")}
_EVENTS_TEXT: Final = (
    "Server-sent events. `status`: the public status, as `GET /status` gives it. `private`: base64 of an age file "
    "sealed to the grant's recipients; only with `Authorization: Bearer TOKEN` of the grant. "
    "`Last-Event-ID` skips what was seen."
)

_EVENT: Final = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "event": {"enum": ["status", "private"]},
        "data": {"type": "string"},
    },
    "required": ["id", "event", "data"],
}

JobNonce = Annotated[str, Query(pattern=r"^[0-9a-f]{64}$", description="32 random bytes of the verifier, in hex")]


class JobRoutes:
    """What the job says of itself, and the acknowledgement that ends it."""

    def __init__(self, link: ControlClient, limits: Limits) -> None:
        self._link = link
        self._limits = limits
        self._streams = 0
        self._acknowledged = False

    def router(self) -> APIRouter:
        """The routes, documented with every answer they give."""
        router = APIRouter(tags=["job"])
        router.add_api_route(
            "/attestation",
            self.attestation,
            methods=["GET"],
            response_class=Response,
            responses={
                200: {"model": Evidence, "description": "evidence over claims that hold the nonce"},
                **documented(
                    (429, ErrorCode.TOO_MANY_REQUESTS),
                    *((503, code) for code in EVIDENCE_ERRORS),
                    headers={429: _RETRY},
                ),
            },
        )
        router.add_api_route("/status", self.status, methods=["GET"], responses=documented())
        router.add_api_route(
            "/events",
            self.events,
            methods=["GET"],
            response_class=StreamingResponse,
            responses={
                200: {
                    "content": {"text/event-stream": {"itemSchema": _EVENT}},
                    "description": _EVENTS_TEXT,
                },
                **documented(
                    (401, ErrorCode.UNAUTHORIZED),
                    (503, ErrorCode.TOO_MANY_REQUESTS),
                    headers={401: _CHALLENGE, 503: _RETRY},
                ),
            },
            openapi_extra={"security": [{}, {TOKEN_SCHEME: []}]},
        )
        router.add_api_route(
            "/ack",
            self.acknowledge,
            methods=["POST"],
            status_code=204,
            response_model=None,
            responses={
                200: {
                    "content": {DELETION_TYPE: {"schema": {"type": "object"}}},
                    "description": "the signed statement of what the job destroyed, to who accepts its type",
                },
                **documented((409, ErrorCode.WRONG_PHASE)),
            },
        )
        return router

    async def attestation(self, nonce: JobNonce) -> Response:
        """Evidence: a quote over claims that hold the nonce, and what a verifier needs to appraise it."""
        evidence = await self._link.evidence(nonce)
        return Response(evidence, media_type="application/json")

    async def status(self) -> Status:
        """Phase, progress and public error code."""
        return self._link.status

    async def acknowledge(self, accept: Annotated[str, Header(max_length=256)] = "") -> Response:
        """The result arrived: the job may end. Saying it again changes nothing."""
        if self._link.result is None:
            raise Refusal(409, ErrorCode.WRONG_PHASE)
        if not self._acknowledged:
            self._acknowledged = True
            await self._link.send(Acknowledged())
        if accept == DELETION_TYPE and (envelope := await self._link.deletion()) is not None:
            return Response(envelope, media_type=DELETION_TYPE)
        return Response(status_code=204)

    async def events(
        self,
        authorization: Annotated[str | None, Header(max_length=256, include_in_schema=False)] = None,
        last_event_id: Annotated[str, Header(alias="Last-Event-ID", pattern=r"^(0|[1-9][0-9]{0,15})$")] = "0",
    ) -> StreamingResponse:
        """Server-sent events: status for all, sealed private events for the holder of the grant's token."""
        token = self._bearer(authorization)
        if self._streams >= self._limits.event_streams:
            raise Refusal(503, ErrorCode.TOO_MANY_REQUESTS, {"Retry-After": "5"})
        cursor = int(last_event_id)
        if cursor > self._link.feed.last_id:  # from an earlier process: its numbers mean nothing here
            cursor = 0
        self._streams += 1
        return _EventStream(self._stream(token, cursor), self._stream_ended)

    def _bearer(self, authorization: str | None) -> str | None:
        if authorization is None:
            return None
        token = authorization.removeprefix(_BEARER)
        if token == authorization or self._refuses(token):
            raise Refusal(401, ErrorCode.UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
        return token

    def _refuses(self, token: str | None) -> bool:
        """Whether `token` is known to be wrong; before a dataset is opened nothing is known."""
        return token is not None and self._link.knows_token() and not self._link.is_token(token)

    async def _stream(self, token: str | None, cursor: int) -> AsyncIterator[bytes]:
        feed = self._link.feed
        end = time.monotonic() + self._limits.event_stream_seconds
        while not feed.closed and not self._refuses(token) and time.monotonic() < end:
            events = feed.since(cursor, private=token is not None and self._link.is_token(token))
            for event in events:
                yield event.encode()
                cursor = event.id
            if not events and not await feed.wait(self._limits.heartbeat_seconds):
                yield b": waiting\n\n"

    def _stream_ended(self) -> None:
        self._streams -= 1


class _EventStream(StreamingResponse):
    """A stream that says when it ended, in whatever way."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
