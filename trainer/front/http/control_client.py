"""The front's end of the control channel: what the supervisor said last, and questions to it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
import time
from collections.abc import Callable
from typing import Final, Self

from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.front.http.answers import Refusal
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
    ResultReady,
    Shutdown,
    StatusUpdate,
    SupervisorMessage,
    TokenHash,
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
"""Why there may be no evidence, as strangers are told; the supervisor's other codes become the last of these."""

_READ_BYTES: Final = 1 << 16


class ControlClient:
    """State of the job as the front knows it. One asyncio loop owns it.

    Args:
        reader: from the supervisor.
        writer: to the supervisor.
        limits: rate and time of evidence requests.
        clock: monotonic seconds.
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
        self._bucket = _Bucket(limits.evidence_per_second, limits.evidence_burst, clock)
        self._asked: dict[int, asyncio.Future[EvidenceReply]] = {}
        self._last_id = 0
        self._token_sha256: str | None = None
        self.status = Status(phase=Phase.STARTING)
        self.result: ResultReady | None = None
        self._deletion: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.feed = EventFeed(limits, self.status)
        self.on_open_upload: Callable[[bool], None] = lambda _: None

    @classmethod
    async def over(cls, sock: socket.socket, limits: Limits) -> Self:
        """A link over a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, limits)

    async def send(self, message: FrontMessage) -> None:
        """Tell the supervisor something.

        Raises:
            ConnectionError: it is gone.
        """
        self._writer.write(FROM_FRONT.encode(message))
        await self._writer.drain()

    async def run(self) -> None:
        """Take messages until the supervisor says `Shutdown` or is gone.

        Raises:
            JobError: it said something that is no message.
        """
        decoder = MessageDecoder(TO_FRONT)
        try:
            while block := await self._read_block():
                decoder.feed(block)
                while (message := decoder.next_message()) is not None:
                    if isinstance(message, Shutdown):
                        return
                    self._take(message)
        finally:
            self.feed.close()

    async def _read_block(self) -> bytes:
        try:
            return await self._reader.read(_READ_BYTES)
        except ConnectionError:
            return b""

    def _take(self, message: SupervisorMessage) -> None:
        match message:
            case StatusUpdate(status=status):
                self._publish(status)
            case EvidenceReply(id=number):
                self._answer(number, message)
            case OpenUpload(accept=accept):
                self.on_open_upload(accept)
            case TokenHash(sha256=digest):
                self._token_sha256 = digest
            case PrivateEvent(sealed=sealed):
                self.feed.publish_private(sealed)
            case ResultReady():
                self.result = message
            case DeletionReady(envelope=envelope):
                if not self._deletion.done():
                    self._deletion.set_result(envelope)

    def _answer(self, number: int, reply: EvidenceReply) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None and not asked.done():
            asked.set_result(reply)

    async def uploaded(self, size: int) -> None:
        """Tell the supervisor that a dataset is whole.

        Why the one before it was refused is of the past, and who sent this one must not take it for an answer.
        """
        if self.status.error is not None:
            self._publish(self.status.model_copy(update={"error": None}))
        await self.send(UploadReady(size=size))

    def _publish(self, status: Status) -> None:
        self.status = status
        self.feed.publish_status(status)

    async def evidence(self, nonce: str) -> str:
        """Evidence over `nonce`, from the supervisor.

        Raises:
            Refusal: too many requests (429), no answer in time (503), or the code that the supervisor gave (503).
        """
        if (wait := self._bucket.take()) > 0:
            raise Refusal(429, ErrorCode.TOO_MANY_REQUESTS, {"Retry-After": str(int(wait) + 1)})
        reply = await self._ask(nonce)
        if reply.evidence is None:
            raise Refusal(503, reply.error if reply.error in EVIDENCE_ERRORS else ErrorCode.INTERNAL)
        return reply.evidence

    async def _ask(self, nonce: str) -> EvidenceReply:
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[EvidenceReply] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            async with asyncio.timeout(self._limits.evidence_seconds):
                await self.send(EvidenceRequest(id=number, nonce=nonce))
                return await answer
        except (TimeoutError, ConnectionError):
            raise Refusal(503, ErrorCode.TIMEOUT) from None
        finally:
            self._asked.pop(number, None)

    async def deletion(self) -> str | None:
        """The job's statement of what it destroyed; None where it gave none in time."""
        try:
            async with asyncio.timeout(self._limits.deletion_seconds):
                return await asyncio.shield(self._deletion)
        except TimeoutError:
            return None

    def knows_token(self) -> bool:
        """Whether a token can be checked yet: only after a dataset was opened."""
        return self._token_sha256 is not None

    def is_token(self, token: str) -> bool:
        """Whether `token` is the grant's; compared in constant time, by digest."""
        found = hashlib.sha256(token.encode()).hexdigest()
        return self._token_sha256 is not None and hmac.compare_digest(found, self._token_sha256)


class _Bucket:
    """A token bucket: `burst` at once, then `rate` per second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = float(burst)
        self._at = clock()

    def take(self) -> float:
        """Take one; 0 if there was one, else seconds until there is."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0
