"""What the job writes about its result and its private events in a spool."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.errors import ErrorCode, SealingError
from trainer.exchange.limits import MAX_SEALED_EVENT_BYTES
from trainer.models import Sha256Hex, Strict

Size = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""Bytes of a file."""


class SpoolResult(Strict):
    """`result.json`: size in bytes and SHA-256 that `result.tar.age` must have.

    Attributes:
        final: whether the job ends with it; otherwise it is the report on a refused dataset.
    """

    size: Size
    sha256: Sha256Hex
    final: bool = True

    def require(self, digest: str) -> None:
        """Requires that a sealed result has this digest; raises SealingError (`result-digest-mismatch`)."""
        if digest != self.sha256:
            raise SealingError(
                ErrorCode.RESULT_DIGEST_MISMATCH,
                "the result is not what the job announced",
                expected=self.sha256,
                found=digest,
            )


class SpoolEvent(Strict):
    """One line of `events.jsonl`: a private event as base64 of an age file; ids grow."""

    id: Annotated[int, Field(ge=1, le=2**53 - 1)]
    sealed: Annotated[str, Field(max_length=MAX_SEALED_EVENT_BYTES)]
