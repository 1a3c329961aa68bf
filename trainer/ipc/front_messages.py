"""The messages between supervisor and front, over one AF_UNIX stream socket.

The front is the process that faces the network, so the supervisor reads little from it: small messages of a closed
set of types. No private key and no plaintext crosses in either direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from trainer.attestation.evidence import DerHex
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, JobError
from trainer.exchange.limits import (
    MAX_DELETION_BYTES,
    MAX_EVIDENCE_ANSWER_BYTES,
    MAX_FRONT_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SEALED_EVENT_BYTES,
)
from trainer.exchange.signed_token import MAX_TOKEN_BYTES
from trainer.exchange.upload_authorization import UploadScope
from trainer.ipc.channel import Channel, ChannelMessage, MessageFormat
from trainer.models import MAX_PROVIDERS, Nonce, Secret, Sha256Hex, Status
from trainer.sandbox.properties import SandboxReport

if TYPE_CHECKING:
    import socket

SEND_SECONDS: Final = 30.0
"""Time for the other end to take one message: an end that no longer reads must not block the other."""

# 2**53 - 1 is the largest integer that every JSON reader keeps exact (RFC 7493, section 2.2).
MessageId = Annotated[int, Field(ge=0, le=2**53 - 1)]
Size = Annotated[int, Field(ge=0, le=2**53 - 1)]
Code = Annotated[ErrorCode, Field(strict=False)]
EachProvider = Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=MAX_PROVIDERS)]
"""A digest for each provider of the job; most jobs have one."""


class Ready(ChannelMessage):
    """The front serves.

    Attributes:
        port: TCP port; 0 if files carry the exchange.
        tls_key: the TLS key, DER SubjectPublicKeyInfo in hex; None if files carry the exchange.
        sandbox: the sandbox properties that the front measured about itself.
    """

    kind: Literal["ready"] = "ready"
    port: Annotated[int, Field(ge=0, le=65535)]
    tls_key: DerHex | None
    # The supervisor keeps only properties whose name begins with `front_`: a front cannot report about others.
    sandbox: SandboxReport = Field(default_factory=dict)

    @property
    def tls_spki_sha256(self) -> str | None:
        """SHA-256 of the TLS key in hex, as clients pin it."""
        return None if self.tls_key is None else sha256_hex(bytes.fromhex(self.tls_key))


class EvidenceRequest(ChannelMessage):
    """A client requests evidence over `nonce`. The supervisor answers with an `EvidenceReply` of the same `id`."""

    kind: Literal["evidence-request"] = "evidence-request"
    id: MessageId
    nonce: Nonce


class UploadReady(ChannelMessage):
    """A sealed dataset of `size` bytes is complete in `dataset.age` of the spool."""

    # The size only appears in a public event: the supervisor opens the file itself, whatever the front claims.
    kind: Literal["upload-ready"] = "upload-ready"
    size: Size


class RegrantReady(ChannelMessage):
    """A re-grant is complete in `regrant.json` of the spool; the supervisor reads it, whatever it is."""

    kind: Literal["regrant-ready"] = "regrant-ready"


class Acknowledged(ChannelMessage):
    """A client acknowledged the result with this value, which only the provider can have."""

    # The value itself: the supervisor compares it, so that a front that was taken over can acknowledge nothing.
    kind: Literal["acknowledged"] = "acknowledged"
    acknowledgement: Secret


class WithdrawalReceived(ChannelMessage):
    """A provider of a joint job takes its dataset back, with this token."""

    # The token itself: the supervisor checks the signature, so that a front that was taken over withdraws nothing.
    kind: Literal["withdrawal-received"] = "withdrawal-received"
    token: Annotated[str, Field(max_length=MAX_TOKEN_BYTES)]


class FrontFailed(ChannelMessage):
    """The front cannot continue; it exits after this message."""

    kind: Literal["front-failed"] = "front-failed"
    code: Code


class EvidenceReply(ChannelMessage):
    """Evidence in the form in which it is served, or the public code of the reason why there is none."""

    # The id matches replies with requests: clients wait at the same time, and a late reply may follow a timeout.
    kind: Literal["evidence-reply"] = "evidence-reply"
    id: MessageId
    evidence: Annotated[str, Field(max_length=MAX_EVIDENCE_ANSWER_BYTES)] | None
    error: Code | None


class StatusUpdate(ChannelMessage):
    """The public status from now on."""

    kind: Literal["status-update"] = "status-update"
    status: Status


class OpenUpload(ChannelMessage):
    """States whether the front accepts a dataset from now on. Accepting again discards the dataset before.

    Attributes:
        accept: whether it does.
        scope: what the authorisation of an upload has to name; without it no token admits one.
        regrant: whether it also accepts a re-grant, of a dataset that the supervisor has set aside.
    """

    kind: Literal["open-upload"] = "open-upload"
    accept: bool
    regrant: bool = False
    scope: UploadScope | None = None


class TokenHashes(ChannelMessage):
    """SHA-256 of each grant's events token in ASCII: clients that present one get private events."""

    # Only digests: a front that was taken over has nothing to show until a provider shows it.
    kind: Literal["token-hashes"] = "token-hashes"
    sha256: EachProvider


class PrivateEvent(ChannelMessage):
    """An age file in base64, sealed to the grant's recipients. The front cannot read it."""

    # Base64 has no newline, so the text cannot begin another event in a stream of server-sent events.
    kind: Literal["private-event"] = "private-event"
    sealed: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=MAX_SEALED_EVENT_BYTES)
    ]


class ResultReady(ChannelMessage):
    """The sealed result is complete in `result.tar.age` of the spool.

    Attributes:
        size: in bytes.
        sha256: digest of the sealed result.
        acknowledgement_sha256: digests of what acknowledges this result, in ASCII: one for each provider.
        final: whether the job ends with it; otherwise it is the report on a refused dataset, and the job goes on.
    """

    kind: Literal["result-ready"] = "result-ready"
    size: Size
    sha256: Sha256Hex
    acknowledgement_sha256: EachProvider
    final: bool = True


class DeletionReady(ChannelMessage):
    """The job's attested deletion statement; public.

    Attributes:
        acknowledged: whether it says that the provider acknowledged the result.
    """

    kind: Literal["deletion-ready"] = "deletion-ready"
    acknowledged: bool = True
    statement: Annotated[str, Field(max_length=MAX_DELETION_BYTES)]


class Shutdown(ChannelMessage):
    """The front finishes the answers that it is sending, then exits."""

    kind: Literal["shutdown"] = "shutdown"


FrontMessage = (
    Ready
    | EvidenceRequest
    | UploadReady
    | RegrantReady
    | Acknowledged
    | WithdrawalReceived
    | FrontFailed
)
SupervisorMessage = (
    EvidenceReply
    | StatusUpdate
    | OpenUpload
    | TokenHashes
    | PrivateEvent
    | ResultReady
    | DeletionReady
    | Shutdown
)

FROM_FRONT: Final[MessageFormat[FrontMessage]] = MessageFormat(
    TypeAdapter(Annotated[FrontMessage, Field(discriminator="kind")]),
    MAX_FRONT_MESSAGE_BYTES,
    "the front",
    JobError,
    ErrorCode.FRONT_DIED,
)
TO_FRONT: Final[MessageFormat[SupervisorMessage]] = MessageFormat(
    TypeAdapter(Annotated[SupervisorMessage, Field(discriminator="kind")]),
    MAX_MESSAGE_BYTES,
    "the supervisor",
    JobError,
    ErrorCode.FRONT_DIED,
)


def supervisor_channel(sock: socket.socket) -> Channel[FrontMessage, SupervisorMessage]:
    """Returns the supervisor's end: sends `SupervisorMessage`, receives `FrontMessage`."""
    descriptor = sock.detach()  # the channel owns and closes it from here on
    return Channel(
        descriptor, descriptor, incoming=FROM_FRONT, outgoing=TO_FRONT, send_seconds=SEND_SECONDS
    )


def front_channel(sock: socket.socket) -> Channel[SupervisorMessage, FrontMessage]:
    """Returns the front's end: sends `FrontMessage`, receives `SupervisorMessage`."""
    descriptor = sock.detach()
    return Channel(
        descriptor, descriptor, incoming=TO_FRONT, outgoing=FROM_FRONT, send_seconds=SEND_SECONDS
    )
