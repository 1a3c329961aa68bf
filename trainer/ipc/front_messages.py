"""The control channel between supervisor and front: newline-delimited JSON over one AF_UNIX stream socket.

The front is the process that strangers talk to. The supervisor therefore reads its messages as hostile input:
small, of a closed set of kinds, strictly validated. No private key and no plaintext ever crosses.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import Annotated, Final, Generic, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from trainer.encoding import parse_json
from trainer.errors import ErrorCode, JobError, UnavailableError
from trainer.exchange.limits import (
    MAX_DELETION_BYTES,
    MAX_EVIDENCE_ANSWER_BYTES,
    MAX_FRONT_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SEALED_EVENT_BYTES,
)
from trainer.models import Nonce, Sha256Hex, Status, Strict
from trainer.sandbox.properties import WallReport

_READ: Final = 1 << 16
_SEND_SECONDS: Final = 30.0

MessageId = Annotated[int, Field(ge=0, le=2**53 - 1)]
Size = Annotated[int, Field(ge=0, le=2**53 - 1)]
Code = Annotated[ErrorCode, Field(strict=False)]


class Ready(Strict):
    """The front serves. `tls_spki_sha256` is None where files carry the exchange; `walls` is what it measured."""

    kind: Literal["ready"] = "ready"
    port: Annotated[int, Field(ge=0, le=65535)]
    tls_spki_sha256: Sha256Hex | None
    walls: WallReport = Field(default_factory=dict)


class EvidenceRequest(Strict):
    """Someone asks for evidence over `nonce`; answered by an `EvidenceReply` with the same `id`."""

    kind: Literal["evidence-request"] = "evidence-request"
    id: MessageId
    nonce: Nonce


class UploadReady(Strict):
    """A sealed dataset of `size` bytes lies whole in `dataset.age` of the spool."""

    kind: Literal["upload-ready"] = "upload-ready"
    size: Size


class Acknowledged(Strict):
    """Someone says that the result arrived."""

    kind: Literal["acknowledged"] = "acknowledged"


class FrontFailed(Strict):
    """The front cannot go on; it exits after this message."""

    kind: Literal["front-failed"] = "front-failed"
    code: Code


class EvidenceReply(Strict):
    """Evidence as it is to be served, or the public code that says why there is none."""

    kind: Literal["evidence-reply"] = "evidence-reply"
    id: MessageId
    evidence: Annotated[str, Field(max_length=MAX_EVIDENCE_ANSWER_BYTES)] | None
    error: Code | None


class StatusUpdate(Strict):
    """The public status from now on."""

    kind: Literal["status-update"] = "status-update"
    status: Status


class OpenUpload(Strict):
    """Whether a dataset is accepted now. Accepting again after a failed opening discards the earlier one."""

    kind: Literal["open-upload"] = "open-upload"
    accept: bool


class TokenHash(Strict):
    """SHA-256 of the ASCII of the grant's token: who shows the token gets private events."""

    kind: Literal["token-hash"] = "token-hash"
    sha256: Sha256Hex


class PrivateEvent(Strict):
    """An age file, sealed to the grant's recipients, in base64. The front cannot read it."""

    kind: Literal["private-event"] = "private-event"
    sealed: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=MAX_SEALED_EVENT_BYTES)]


class ResultReady(Strict):
    """The sealed result lies in `result.tar.age` of the spool."""

    kind: Literal["result-ready"] = "result-ready"
    size: Size
    sha256: Sha256Hex


class DeletionReady(Strict):
    """The job's signed statement of what it destroyed; public."""

    kind: Literal["deletion-ready"] = "deletion-ready"
    envelope: Annotated[str, Field(max_length=MAX_DELETION_BYTES)]


class Shutdown(Strict):
    """Finish what is being sent, then exit."""

    kind: Literal["shutdown"] = "shutdown"


FrontMessage = Ready | EvidenceRequest | UploadReady | Acknowledged | FrontFailed
SupervisorMessage = (
    EvidenceReply | StatusUpdate | OpenUpload | TokenHash | PrivateEvent | ResultReady | DeletionReady | Shutdown
)

_FROM_FRONT: Final[TypeAdapter[FrontMessage]] = TypeAdapter(Annotated[FrontMessage, Field(discriminator="kind")])
_FROM_SUPERVISOR: Final[TypeAdapter[SupervisorMessage]] = TypeAdapter(
    Annotated[SupervisorMessage, Field(discriminator="kind")]
)


def encode_message(message: FrontMessage | SupervisorMessage) -> bytes:
    """One line of the channel.

    Raises:
        JobError: the message is above `MAX_MESSAGE_BYTES`.
    """
    line = message.model_dump_json().encode() + b"\n"
    if len(line) > MAX_MESSAGE_BYTES:
        raise JobError(
            ErrorCode.JOB_FAILED,
            "a control message is too large",
            expected=f"at most {MAX_MESSAGE_BYTES} bytes",
            found=len(line),
        )
    return line


def parse_front_message(line: bytes) -> FrontMessage:
    """What the front said.

    Raises:
        JobError: not one of its messages.
    """
    return _parse(_FROM_FRONT, line)


def parse_supervisor_message(line: bytes) -> SupervisorMessage:
    """What the supervisor said.

    Raises:
        JobError: not one of its messages.
    """
    return _parse(_FROM_SUPERVISOR, line)


Incoming = TypeVar("Incoming")
Outgoing = TypeVar("Outgoing", bound=Strict)


def _parse(adapter: TypeAdapter[Incoming], line: bytes) -> Incoming:
    try:
        parse_json(line)
        return adapter.validate_json(line)
    except (ValidationError, ValueError):
        raise JobError(ErrorCode.FRONT_DIED, "the control channel carried something that is no message") from None


class Channel(Generic[Incoming, Outgoing]):
    """One end of the control channel, blocking. Any thread may send; one thread receives.

    Args:
        sock: connected AF_UNIX stream socket; owned by the channel.
        incoming: how a line from the other end is read.
        limit: longest line accepted from the other end, newline included.
    """

    def __init__(self, sock: socket.socket, incoming: TypeAdapter[Incoming], limit: int) -> None:
        # The timeout bounds sends: an end that no longer reads must not hold the other. Receiving polls first.
        sock.settimeout(_SEND_SECONDS)
        self._sock = sock
        self._incoming = incoming
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """The socket's file descriptor, for selectors (a whole message may also wait in the buffer)."""
        return self._sock.fileno()

    def send(self, message: Outgoing) -> None:
        """Send one message.

        Raises:
            JobError: the other end is gone or does not read, or the message is too large.
        """
        line = encode_message(message)  # type: ignore[arg-type]  # Outgoing is one of the two unions
        try:
            with self._sending:
                self._sock.sendall(line)
        except OSError as error:
            raise JobError(ErrorCode.FRONT_DIED, "the other end of the control channel is gone") from error

    def receive(self, *, timeout: float | None = None) -> Incoming | None:
        """The next message; None once the other end has closed.

        Args:
            timeout: seconds to wait for each next bytes; None waits for ever. What was read stays for the
                next call.

        Raises:
            UnavailableError: `timeout` passed without a whole message.
            JobError: a line that is too long, cut off, or no message.
        """
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched >= self._limit:
                raise JobError(ErrorCode.FRONT_DIED, "a control message is too long")
            if not (block := self._read(timeout)):
                self._check_ended()
                return None
            self._buffer += block
        return self._take(end)

    def _take(self, end: int) -> Incoming:
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        if len(line) >= self._limit:
            raise JobError(ErrorCode.FRONT_DIED, "a control message is too long")
        return _parse(self._incoming, line)

    def _read(self, timeout: float | None) -> bytes:
        readable = select.poll()
        readable.register(self._sock, select.POLLIN)
        if not readable.poll(None if timeout is None else timeout * 1000):
            raise UnavailableError(ErrorCode.TIMEOUT, "no control message in time")
        try:
            return self._sock.recv(_READ)
        except ConnectionError:
            return b""

    def _check_ended(self) -> None:
        if self._buffer:
            raise JobError(ErrorCode.FRONT_DIED, "the control channel ended inside a message")

    def close(self) -> None:
        """Close the socket; the other end reads an end of file."""
        self._sock.close()


def supervisor_channel(sock: socket.socket) -> Channel[FrontMessage, SupervisorMessage]:
    """The supervisor's end: sends `SupervisorMessage`, receives `FrontMessage`."""
    return Channel(sock, _FROM_FRONT, MAX_FRONT_MESSAGE_BYTES)


def front_channel(sock: socket.socket) -> Channel[SupervisorMessage, FrontMessage]:
    """The front's end: sends `FrontMessage`, receives `SupervisorMessage`."""
    return Channel(sock, _FROM_SUPERVISOR, MAX_MESSAGE_BYTES)
