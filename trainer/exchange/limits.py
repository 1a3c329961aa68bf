"""Every cap of the carrier on sizes, counts and times, in one place. Outsiders choose none of them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from trainer.attestation.evidence import MAX_EVIDENCE_BYTES
from trainer.models import Strict

MAX_MESSAGE_BYTES: Final = 32 << 20
"""One message of the control channel, newline included (evidence may double when escaped)."""

MAX_FRONT_MESSAGE_BYTES: Final = 4 << 10
"""One message *from* the front: it is exposed to the network, so the supervisor reads little from it."""

MAX_SEALED_EVENT_BYTES: Final = 1 << 20
"""One private event: base64 of an age file."""

MAX_STATUS_BYTES: Final = 4 << 10
MAX_ERROR_BYTES: Final = 4 << 10
MAX_EVIDENCE_ANSWER_BYTES: Final = MAX_EVIDENCE_BYTES
MAX_DELETION_BYTES: Final = 16 << 10

DELETION_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
"""Media type of the answer to `POST /ack` for who accepts it: the job's deletion statement."""

Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]


class Limits(Strict):
    """What one front process grants to strangers. Times in seconds, sizes in bytes."""

    connections: Count = 256
    """Open TCP connections, TLS handshakes included; further ones are closed unanswered."""
    handshake_seconds: Seconds = 10
    """To finish a TLS handshake."""
    head_seconds: Seconds = 10
    """To send a request line and all headers, from the first wait for them."""
    head_bytes: Count = 16 << 10
    """Request line and headers together."""
    headers: Count = 48
    """Number of request headers."""
    idle_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """How long a connection may stay open between requests."""
    block_bytes: Count = 256 << 10
    """Unit of reading and writing bodies."""
    block_seconds: Seconds = 30
    """For one block of an upload to arrive, and for one block of an answer to be taken."""
    linger_seconds: Seconds = 2
    """How long the rest of a body is thrown away after an early answer, so that the answer is read."""
    event_streams: Count = 32
    """Open `/events` answers."""
    event_stream_seconds: Seconds = 3600
    """Age at which an event stream is closed; clients reconnect with `Last-Event-ID`."""
    heartbeat_seconds: Seconds = 15
    """Silence on an event stream after which a comment line is sent."""
    kept_events: Count = 4096
    """Private events kept for clients that reconnect."""
    kept_event_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 8 << 20
    """Bytes of private events kept for clients that reconnect."""
    evidence_burst: Count = 8
    """Evidence that can be asked for at once before the rate applies: each costs a quote."""
    evidence_per_second: Annotated[float, Field(gt=0, le=1000)] = 1.0
    deletion_seconds: Seconds = 10
    """For the supervisor to destroy what it has and to sign that it did, after an acknowledgement."""
    evidence_seconds: Seconds = 60
    """For the supervisor to answer with evidence."""
    upload_idle_seconds: Seconds = 120
    """After so long without a byte, an unfinished upload may be replaced by another."""
    empty_upload_seconds: Seconds = 5
    """The same for an upload that has no byte yet: its client may have died before it noted the upload's id."""
