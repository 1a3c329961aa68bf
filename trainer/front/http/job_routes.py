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
from trainer.front.http.answers import RequestRefused, documented_responses, header_schema
from trainer.front.http.bearer import CHALLENGE, UNAUTHORIZED, parse_bearer, unauthorized
from trainer.front.http.control_client import EVIDENCE_ERRORS, ControlClient
from trainer.ipc.front_messages import Acknowledged, ResultReady
from trainer.models import Status

EVENTS_SCHEME: Final = "eventsToken"
ACKNOWLEDGEMENT_SCHEME: Final = "acknowledgement"
"""Names of security schemes in the OpenAPI document."""

_RETRY: Final = {"Retry-After": header_schema("^[1-9][0-9]*$", "seconds")}
_EVENTS_TEXT: Final = (
    "Server-sent events. `status`: the public status, as `GET /status` gives it. `private`: base64 of an age file "
    "sealed to the grant's recipients; only with `Authorization: Bearer TOKEN`, the grant's token for events. "
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

_STATEMENT: Final[dict[str, object]] = {
    "content": {DELETION_TYPE: {"schema": {"type": "object"}}},
    "description": "the signed statement of what the job destroyed; after an acknowledgement, to who accepts it",
}

JobNonce = Annotated[
    str, Query(pattern=r"^[0-9a-f]{64}$", description="32 random bytes of the verifier, in hex")
]


class JobRoutes:
    """Attestation, status, events, and the acknowledgement of the result."""

    def __init__(self, control: ControlClient, limits: Limits) -> None:
        self._control = control
        self._limits = limits
        self._open_streams = 0
        self._acknowledged: tuple[ResultReady, set[str]] | None = None

    def router(self) -> APIRouter:
        """Returns the routes with the documentation of all their responses."""
        router = APIRouter(tags=["job"])
        router.add_api_route(
            "/attestation",
            self.attestation,
            methods=["GET"],
            response_class=Response,
            responses={
                200: {"model": Evidence, "description": "evidence over claims that hold the nonce"},
                **documented_responses(
                    (429, ErrorCode.TOO_MANY_REQUESTS),
                    *((503, code) for code in EVIDENCE_ERRORS),
                    headers={429: _RETRY},
                ),
            },
        )
        router.add_api_route(
            "/status", self.status, methods=["GET"], responses=documented_responses()
        )
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
                **documented_responses(
                    UNAUTHORIZED,
                    (503, ErrorCode.TOO_MANY_REQUESTS),
                    headers={401: CHALLENGE, 503: _RETRY},
                ),
            },
            openapi_extra={"security": [{}, {EVENTS_SCHEME: []}]},
        )
        self._add_last_routes(router)
        return router

    def _add_last_routes(self, router: APIRouter) -> None:
        """Adds the routes of the end of a job: the acknowledgement, and the statement that it leads to."""
        router.add_api_route(
            "/ack",
            self.acknowledge,
            methods=["POST"],
            status_code=204,
            response_model=None,
            responses={
                200: _STATEMENT,
                **documented_responses(
                    UNAUTHORIZED, (409, ErrorCode.WRONG_PHASE), headers={401: CHALLENGE}
                ),
            },
            openapi_extra={"security": [{ACKNOWLEDGEMENT_SCHEME: []}]},
        )
        router.add_api_route(
            "/deletion",
            self.deletion,
            methods=["GET"],
            response_class=Response,
            responses={
                200: _STATEMENT,
                **documented_responses((409, ErrorCode.WRONG_PHASE)),
            },
        )

    async def attestation(self, nonce: JobNonce) -> Response:
        """Returns evidence: a quote over claims that hold the nonce, and what a verifier needs to appraise it."""
        evidence = await self._control.evidence(nonce)
        return Response(evidence, media_type="application/json")

    async def status(self) -> Status:
        """Returns phase, progress and public error code."""
        return self._control.status

    async def acknowledge(
        self,
        authorization: Annotated[
            str | None, Header(max_length=256, include_in_schema=False)
        ] = None,
        accept: Annotated[str, Header(max_length=256)] = "",
    ) -> Response:
        """Acknowledges the result: the job may end, unless it is the report on a refused dataset.

        A joint job ends when each of its providers has. Another acknowledgement changes nothing.

        `Authorization: Bearer ACKNOWLEDGEMENT`: what the grant's secret gives for this result.
        """
        if (result := self._control.result) is None:
            raise RequestRefused(409, ErrorCode.WRONG_PHASE)
        shown = parse_bearer(authorization)
        if shown is None or not self._control.acknowledges(shown):
            raise unauthorized()
        missing = await self._pass_on(result, shown)
        if missing or not result.final:
            return Response(status_code=204)
        if (
            accept == DELETION_TYPE
            and (statement := await self._control.deletion_statement()) is not None
        ):
            return Response(statement, media_type=DELETION_TYPE)
        return Response(status_code=204)

    async def _pass_on(self, result: ResultReady, shown: str) -> int:
        """Passes an acknowledgement on, each once; returns how many providers have shown none yet."""
        if self._acknowledged is None or self._acknowledged[0] is not result:
            self._acknowledged = (result, set())
        passed = self._acknowledged[1]
        if shown not in passed:
            passed.add(shown)
            await self._control.send(Acknowledged(acknowledgement=shown))
        return len(result.acknowledgement_sha256) - len(passed)

    async def deletion(self) -> Response:
        """The job's statement of what it destroyed, signed by the receipt key."""
        if self._control.deletion is None:
            raise RequestRefused(409, ErrorCode.WRONG_PHASE)
        return Response(self._control.deletion, media_type=DELETION_TYPE)

    async def events(
        self,
        authorization: Annotated[
            str | None, Header(max_length=256, include_in_schema=False)
        ] = None,
        last_event_id: Annotated[
            str, Header(alias="Last-Event-ID", pattern=r"^(0|[1-9][0-9]{0,15})$")
        ] = "0",
    ) -> StreamingResponse:
        """Streams server-sent events: status for all, sealed private events for who has the grant's token."""
        token = self._bearer_token(authorization)
        # A stream holds a connection for minutes. The limit leaves connections for uploads and results.
        if self._open_streams >= self._limits.event_streams:
            raise RequestRefused(503, ErrorCode.TOO_MANY_REQUESTS, {"Retry-After": "5"})
        cursor = int(last_event_id)
        # The client has an id of an earlier front process, whose numbers do not apply: it gets all events again.
        if cursor > self._control.feed.last_id:
            cursor = 0
        self._open_streams += 1
        return _EventStreamResponse(self._stream_events(token, cursor), self._release_stream)

    def _bearer_token(self, authorization: str | None) -> str | None:
        if authorization is None:
            return None
        token = parse_bearer(authorization)
        if token is None or self._is_wrong_token(token):
            raise unauthorized()
        return token

    def _is_wrong_token(self, token: str | None) -> bool:
        """Returns whether `token` is wrong; False while no dataset has been opened and the hash is unknown."""
        return (
            token is not None
            and self._control.has_token_hash()
            and not self._control.token_matches(token)
        )

    async def _stream_events(self, token: str | None, cursor: int) -> AsyncIterator[bytes]:
        feed = self._control.feed
        end = time.monotonic() + self._limits.event_stream_seconds
        # The token is checked again before each batch: a stream may begin before the hash of the token is known.
        while not feed.closed and not self._is_wrong_token(token) and time.monotonic() < end:
            events = feed.events_since(
                cursor, private=token is not None and self._control.token_matches(token)
            )
            for event in events:
                yield event.encode()
                cursor = event.id
            if not events and not await feed.wait(self._limits.heartbeat_seconds):
                # A comment line: proxies and clients close connections that stay silent.
                yield b": waiting\n\n"

    def _release_stream(self) -> None:
        self._open_streams -= 1


class _EventStreamResponse(StreamingResponse):
    """A streaming response that calls `on_end` once, also after an error or a lost connection."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
