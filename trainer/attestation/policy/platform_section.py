"""The policy's section `platform`: which machines may run the VM, and which CPU state they may give it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field

from trainer.attestation.policy.sections import Unset
from trainer.attestation.tdx.td_report import XfamName
from trainer.models import Strict

Ppid = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""Platform provisioning id in lower-case hex, as the platform's certificate has it: one machine of Intel's."""


class PlatformSection(Strict):
    """Which machines may run the VM (`ppid`), and which further CPU state it may have (`xfam`)."""

    ppid: Annotated[tuple[Ppid, ...], Field(min_length=1)] | Unset
    xfam: tuple[XfamName, ...]

    @classmethod
    def strict(cls) -> Self:
        """Returns the section that allows no further CPU state; the reviewed files do not name machines."""
        return cls(ppid="any", xfam=())

    def explain(self) -> Iterator[str]:
        """Yields what this section demands and leaves open, one sentence each."""
        if self.ppid == "any":
            yield "Not demanded: a particular machine; any that Intel certified will do, wherever it is."
        else:
            yield f"The machine must be one of {len(self.ppid)} listed, by the id in Intel's certificate for it."
        if self.xfam:
            yield f"The VM may use {' and '.join(self.xfam)}, CPU state that is refused otherwise."
