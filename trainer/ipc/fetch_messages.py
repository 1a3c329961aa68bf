"""The messages between supervisor and fetch process: one order, then one report.

Nothing in them is private but the operator's access token for the hub: the model is named in the job spec, whose
text the evidence contains.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from trainer.error_document import ErrorDocument
from trainer.errors import ErrorCode, UnavailableError, UsageError
from trainer.ipc.channel import ChannelMessage, MessageFormat
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import ModelSection

_Directory = Annotated[str, Field(max_length=4096)]


class FetchOrder(ChannelMessage):
    """The order to fetch files: which ones, and where to.

    Attributes:
        model: the job spec's section: hub id or path, revision, and the SHA-256 of each file.
        base_dir: directory that a relative path of a local model is relative to.
        into: existing directory on the private tmpfs that gets the files.
        hub_token: the operator's access token, for the hub's own origin; None asks without one.
        plan: what the process confines itself to before it reads the first byte; None (tests) for nothing.
    """

    kind: Literal["fetch-order"] = "fetch-order"
    model: ModelSection
    base_dir: _Directory
    into: _Directory
    hub_token: Annotated[str, Field(pattern=r"^[!-~]{1,512}$")] | None = Field(
        default=None, repr=False
    )
    plan: SandboxPlan | None = None


class Fetched(ChannelMessage):
    """Every file is in place, and each has the digest that the job spec states."""

    kind: Literal["fetched"] = "fetched"


class FetchFailed(ErrorDocument, ChannelMessage):
    """The model could not be brought. The texts hold file names and digests only."""

    kind: Literal["fetch-failed"] = "fetch-failed"


FetchReport = Fetched | FetchFailed

# An order lists at most 1024 files of the model, with a name and a digest each, and the paths of a plan.
TO_FETCH: Final[MessageFormat[FetchOrder]] = MessageFormat(
    TypeAdapter(FetchOrder), 4 << 20, "the supervisor", UsageError, ErrorCode.USAGE
)
# The longest report is an `ErrorDocument`, which stays below 60 KiB. The process has talked to strangers on the
# network, so the supervisor reads no more than that.
FROM_FETCH: Final[MessageFormat[FetchReport]] = MessageFormat(
    TypeAdapter(Annotated[FetchReport, Field(discriminator="kind")]),
    64 << 10,
    "the process that fetches the base model",
    UnavailableError,
    ErrorCode.MODEL_UNAVAILABLE,
)
