"""How a simulated VM is set up: release, forms, GPUs, and what it lies about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from trainer.simulator.event_log_writer import EventVersion
from trainer.simulator.fault import Fault

QuoteVersion = Literal[4, 5]
TdReportForm = Literal["1.0", "1.5"]

IMAGE_NAME: Final = "DEVELOPMENT-simulated-not-a-tee"


class Release(StrEnum):
    """Which dstack guest agent is simulated."""

    V0_5 = "0.5.11"
    """Has `EmitEvent`; no `GpuInfo`; quotes carry the digests of runtime events."""
    V0_6 = "0.6.0"
    """Has `GpuInfo`; no `EmitEvent`; quotes leave the digests of runtime events empty."""


@dataclass(frozen=True)
class VmOptions:
    """How a simulated VM is set up.

    Args:
        release: guest agent to simulate.
        event_version: form of runtime events.
        gpu_attestation: text of `GpuInfo`; where not empty, the boot log has the GPU events.
        gpu_count: how many GPUs the boot log claims if there is a `gpu_attestation`.
        image: name of the OS image, as the host tells it.
        config_id: whether the quote's MRCONFIGID carries the compose hash (form 01), as 0.6.0 does.
        quote_version: form of quotes.
        td_report: form of the TD report in them; 1.5 needs quotes of version 5.
        faults: what the VM lies about.

    Raises:
        ValueError: a TD report 1.5 in quotes of version 4, which have no place for it.
    """

    release: Release = Release.V0_6
    event_version: EventVersion = 1
    gpu_attestation: str = ""
    gpu_count: int = 1
    image: str = IMAGE_NAME
    config_id: bool = True
    quote_version: QuoteVersion = 4
    td_report: TdReportForm = "1.0"
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if self.td_report == "1.5" and self.quote_version == 4:
            raise ValueError("td_report: a quote of version 4 holds a TD report 1.0 only")
