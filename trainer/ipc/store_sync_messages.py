"""The messages between supervisor and sync: one order, then one report on whether the store answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from trainer.error_document import ErrorDocument
from trainer.errors import ErrorCode, JobError
from trainer.ipc.channel import ChannelMessage, MessageFormat
from trainer.sandbox.plan import SandboxPlan


class SyncOrder(ChannelMessage):
    """The order to keep a spool and a store in step, until the channel closes.

    Attributes:
        store: location of the store.
        variables: how it is reached, of the closed list; credentials of the operator, for this process alone.
        spool: the spool directory.
        max_upload_bytes: the largest sealed dataset that is fetched.
        plan: what the process confines itself to before it connects; None (tests) for nothing.
    """

    kind: Literal["sync-order"] = "sync-order"
    store: Annotated[str, Field(max_length=2048)]
    variables: Annotated[Mapping[str, str], Field(repr=False)]
    spool: Annotated[str, Field(max_length=4096)]
    max_upload_bytes: Annotated[int, Field(ge=0, le=2**53 - 1)]
    plan: SandboxPlan | None = None


class SyncReady(ChannelMessage):
    """The store answers, and nothing of an earlier start is left in it."""

    kind: Literal["sync-ready"] = "sync-ready"


class SyncFailed(ErrorDocument, ChannelMessage):
    """The store refuses. The texts hold no credentials."""

    kind: Literal["sync-failed"] = "sync-failed"


SyncReport = SyncReady | SyncFailed

TO_SYNC: Final[MessageFormat[SyncOrder]] = MessageFormat(
    TypeAdapter(SyncOrder), 1 << 20, "the supervisor", JobError, ErrorCode.STORE_SYNC_DIED
)
# It has talked to strangers on the network, so the supervisor reads no more than an `ErrorDocument` needs.
FROM_SYNC: Final[MessageFormat[SyncReport]] = MessageFormat(
    TypeAdapter(Annotated[SyncReport, Field(discriminator="kind")]),
    64 << 10,
    "the sync process",
    JobError,
    ErrorCode.STORE_SYNC_DIED,
)
