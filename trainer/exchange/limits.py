"""Every bound of the exchange on sizes, counts and times. No client can choose one of them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from trainer.attestation.evidence import MAX_EVIDENCE_BYTES, MAX_STATEMENT_EVIDENCE_BYTES
from trainer.models import Strict

MAX_MESSAGE_BYTES: Final = 32 << 20
"""One message of the control channel, newline included; escaping may double the size of evidence."""

MAX_FRONT_MESSAGE_BYTES: Final = 4 << 10
"""One message *from* the front. It faces the network, so the supervisor reads only short messages from it."""

MAX_SEALED_EVENT_BYTES: Final = 1 << 20
"""One private event: base64 of an age file."""

MAX_STATUS_BYTES: Final = 4 << 10
MAX_ERROR_BYTES: Final = 4 << 10
MAX_EVIDENCE_ANSWER_BYTES: Final = MAX_EVIDENCE_BYTES
MAX_DELETION_BYTES: Final = MAX_STATEMENT_EVIDENCE_BYTES + (16 << 10)

DELETION_TYPE: Final = "application/vnd.confidential-trainer.deletion+json"
"""Media type of the deletion statement, which answers `POST /ack` if the request accepts it."""

Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]


class Limits(Strict):
    """Bounds on what the front does for clients. Times in seconds, sizes in bytes."""

    connections: Count = 256
    """Open TCP connections, including those in a TLS handshake; further ones are closed without an answer."""
    handshake_seconds: Seconds = 10
    """Time to finish a TLS handshake."""
    head_seconds: Seconds = 10
    """Time to send a request line and all headers, from the moment the server waits for them."""
    head_bytes: Count = 16 << 10
    """Size of request line and headers together."""
    headers: Count = 48
    """Number of request headers."""
    idle_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """Time that a connection may stay open between requests."""
    block_bytes: Count = 256 << 10
    """Size in which bodies are read and written."""
    block_seconds: Seconds = 30
    """Time for one block of an upload to arrive, and for a client to take one block of a response."""
    linger_seconds: Seconds = 2
    """Time that the rest of a request body is discarded after an early response, so that the client reads it."""
    event_streams: Count = 32
    """Open `/events` streams."""
    event_stream_seconds: Seconds = 3600
    """Age at which an event stream is closed; clients reconnect with `Last-Event-ID`."""
    heartbeat_seconds: Seconds = 15
    """Silence on an event stream after which a comment line is sent."""
    kept_events: Count = 4096
    """Private events kept for clients that reconnect."""
    kept_event_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 8 << 20
    """Bytes of private events kept for clients that reconnect."""
    evidence_burst: Count = 8
    """Requests for evidence that are answered at once before the rate applies: each costs a quote."""
    evidence_per_second: Annotated[float, Field(gt=0, le=1000)] = 1.0
    deletion_seconds: Seconds = 10
    """Time for the supervisor to destroy keys and plaintext and sign the statement after an acknowledgement."""
    evidence_seconds: Seconds = 60
    """Time for the supervisor to return evidence."""
    upload_idle_seconds: Seconds = 120
    """Time without a byte after which another upload may replace an unfinished one."""
    empty_upload_seconds: Seconds = 5
    """The same for an upload without any byte: its client may have died before it stored the upload's location."""
