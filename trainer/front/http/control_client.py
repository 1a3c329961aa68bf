"""The front's end of the control channel: the latest state of the job, and requests to the supervisor."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final, Self

from trainer.encoding import has_sha256
from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.upload_authorization import UploadScope
from trainer.front.http.answers import RequestRefused
from trainer.front.http.event_feed import EventFeed
from trainer.ipc.channel import MessageDecoder
from trainer.ipc.front_messages import (
    FROM_FRONT,
    TO_FRONT,
    DeletionReady,
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    OpenUpload,
    PrivateEvent,
    RegrantReady,
    ResultReady,
    Shutdown,
    StatusUpdate,
    SupervisorMessage,
    TokenHashes,
    UploadReady,
)
from trainer.models import Phase, Status

EVIDENCE_ERRORS: Final = (
    ErrorCode.TIMEOUT,
    ErrorCode.JOB_BUSY,
    ErrorCode.GUEST_AGENT_UNAVAILABLE,
    ErrorCode.GUEST_AGENT_PROTOCOL,
    ErrorCode.GPU_EVIDENCE_UNAVAILABLE,
    ErrorCode.INTERNAL,
)
"""Public codes of failed evidence requests; any other code of the supervisor is replaced by `internal-error`."""

_READ_BYTES: Final = 1 << 16


class ControlClient:
    """The latest state of the job, and requests to the supervisor. One asyncio loop owns it.

    Args:
        reader: stream from the supervisor.
        writer: stream to the supervisor.
        limits: rate (requests per second) and time limit (seconds) of evidence requests.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._bucket = _TokenBucket(limits.evidence_per_second, limits.evidence_burst, clock)
        self._pending: dict[int, asyncio.Future[EvidenceReply]] = {}
        self._last_id = 0
        self._token_sha256: tuple[str, ...] = ()
        self.status = Status(phase=Phase.STARTING)
        self.result: ResultReady | None = None
        self.deletion: str | None = None
        self.upload_scope: UploadScope | None = None
        self.job_spec_sha256: str | None = None
        self.accepts_regrant = False
        self._regrants = _TokenBucket(limits.evidence_per_second, limits.evidence_burst, clock)
        self._deletion: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.feed = EventFeed(limits, self.status)
        self.on_open_upload: Callable[[bool], None] = lambda _: None

    @classmethod
    async def over_socket(cls, sock: socket.socket, limits: Limits) -> Self:
        """Returns a client over a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, limits)

    async def send(self, message: FrontMessage) -> None:
        """Sends a message to the supervisor.

        Raises:
            ConnectionError: the supervisor closed the channel.
        """
        self._writer.write(FROM_FRONT.encode(message))
        await self._writer.drain()

    async def run(self) -> None:
        """Handles messages until the supervisor sends `Shutdown` or closes the channel.

        Raises:
            JobError: the supervisor sent bytes that are not a message.
        """
        decoder = MessageDecoder(TO_FRONT)
        try:
            while block := await self._reader.read(_READ_BYTES):
                decoder.feed(block)
                while (message := decoder.next_message()) is not None:
                    if isinstance(message, Shutdown):
                        return
                    self._take(message)
        except ConnectionError:
            return  # the supervisor has died: the same as the end of the stream
        finally:
            self.feed.close()

    def _take(self, message: SupervisorMessage) -> None:
        match message:
            case StatusUpdate(status=status):
                self._publish_status(status)
            case EvidenceReply(id=number):
                # A reply that arrives after its request timed out has no pending future and is dropped.
                pending = self._pending.pop(number, None)
                if pending is not None and not pending.done():
                    pending.set_result(message)
            case OpenUpload(accept=accept, scope=scope, regrant=regrant):
                self.upload_scope, self.accepts_regrant = scope, accept and regrant
                if scope is not None:
                    self.job_spec_sha256 = scope.job_spec_sha256
                if accept:  # token and private events are those of a dataset that was refused
                    self._token_sha256 = ()
                    self.feed.drop_private()
                self.on_open_upload(accept)
            case TokenHashes(sha256=digests):
                self._token_sha256 = digests
            case PrivateEvent(sealed=sealed):
                self.feed.publish_private(sealed)
            case ResultReady():
                self.result = message
            case DeletionReady(statement=statement, acknowledged=acknowledged):
                self.deletion = statement
                if acknowledged and not self._deletion.done():
                    self._deletion.set_result(statement)

    async def report_upload(self, size: int) -> None:
        """Reports to the supervisor that a dataset of `size` bytes is complete.

        Clears error and report of an earlier dataset first: the client would read them as the verdict on this one.
        """
        await self._report_arrival(UploadReady(size=size))

    async def report_regrant(self) -> None:
        """Reports to the supervisor that a re-grant is complete, as `report_upload` does."""
        self.accepts_regrant = False
        await self._report_arrival(RegrantReady())

    async def _report_arrival(self, message: UploadReady | RegrantReady) -> None:
        if self.status.error is not None:
            self._publish_status(self.status.without_refusal())
        await self.send(message)

    def require_regrant_accepted(self) -> None:
        """Requires that a re-grant is accepted, and that there were not too many.

        Raises:
            RequestRefused: 409 `wrong-phase`, 429 `too-many-requests`.
        """
        if not self.accepts_regrant:
            raise RequestRefused(409, ErrorCode.WRONG_PHASE)
        # Each has the supervisor open a header: the limit holds for all clients together, as for evidence.
        _require_token(self._regrants)

    def _publish_status(self, status: Status) -> None:
        self.status = status
        self.feed.publish_status(status)

    async def evidence(self, nonce: str) -> str:
        """Returns evidence over `nonce` from the supervisor.

        Raises:
            RequestRefused: too many requests (429), no reply in time (503), or the error of the supervisor (503).
        """
        # Quotes are expensive, and VMs may share a quoting enclave: the limit holds for all clients together.
        _require_token(self._bucket)
        reply = await self._request_evidence(nonce)
        if reply.evidence is None:
            raise RequestRefused(
                503, reply.error if reply.error in EVIDENCE_ERRORS else ErrorCode.INTERNAL
            )
        return reply.evidence

    async def _request_evidence(self, nonce: str) -> EvidenceReply:
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[EvidenceReply] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            async with asyncio.timeout(self._limits.evidence_seconds):
                await self.send(EvidenceRequest(id=number, nonce=nonce))
                return await answer
        except (TimeoutError, ConnectionError):
            raise RequestRefused(503, ErrorCode.TIMEOUT) from None
        finally:
            self._pending.pop(number, None)

    async def deletion_statement(self) -> str | None:
        """Returns the deletion statement that the job signs after an acknowledgement.

        None if it does not arrive within `deletion_seconds`.
        """
        try:
            async with asyncio.timeout(self._limits.deletion_seconds):
                # Other requests wait for the same future: the timeout of one must not cancel it.
                return await asyncio.shield(self._deletion)
        except TimeoutError:
            return None

    def has_token_hash(self) -> bool:
        """Returns whether a token can be checked: the supervisor sends the hash once it has opened a dataset."""
        return bool(self._token_sha256)

    def token_matches(self, token: str) -> bool:
        """Returns whether `token` is a grant's for events."""
        return has_sha256(token.encode(), self._token_sha256)

    def acknowledges(self, shown: str) -> bool:
        """Returns whether `shown` acknowledges the result that is served."""
        return self.result is not None and has_sha256(
            shown.encode(), self.result.acknowledgement_sha256
        )


def _require_token(bucket: _TokenBucket) -> None:
    if (wait := bucket.take()) > 0:
        raise RequestRefused(429, ErrorCode.TOO_MANY_REQUESTS, {"Retry-After": str(int(wait) + 1)})


class _TokenBucket:
    """A token bucket: allows `burst` requests at once, then `rate` requests per second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = float(burst)
        self._at = clock()

    def take(self) -> float:
        """Takes one token; returns 0, or the seconds until a token is available.

        level = min(burst, level + elapsed seconds * rate).
        """
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0
