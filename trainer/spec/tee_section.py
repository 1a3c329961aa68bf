"""Section `tee`: what the job claims about itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.models import Strict
from trainer.sandbox.properties import SandboxProperty


class TeeSection(Strict):
    """What the job claims about itself.

    `evidence_lifetime_seconds` bounds the validity of the claims. `sandbox` lists the sandbox properties that the
    job requires: if one is missing, the job ends before it derives keys.
    """

    evidence_lifetime_seconds: Annotated[int, Field(ge=60, le=30 * 86400)] = 86400
    sandbox: Annotated[
        tuple[Annotated[SandboxProperty, Field(strict=False)], ...], Field(max_length=64)
    ] = ()
