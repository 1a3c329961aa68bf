"""Set-up of a simulated VM: release, versions of its formats, GPUs and faults."""

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
    """Releases of dstack's guest agent that are simulated."""

    V0_5 = "0.5.11"
    """Has no `GpuInfo`; quotes contain the digests of runtime events."""
    V0_6 = "0.6.0"
    """Has `GpuInfo`; quotes leave the digests of runtime events empty."""


@dataclass(frozen=True)
class VmOptions:
    """Set-up of a simulated VM.

    Args:
        release: guest agent to simulate.
        event_version: version of the digests of runtime events.
        gpu_attestation: text of `GpuInfo`; the boot log has GPU events unless it is empty.
        gpu_count: number of GPUs that the boot log claims if there is a `gpu_attestation`.
        image: name of the OS image in the host's configuration.
        config_id: whether the quote's MRCONFIGID carries the compose hash (form 01), as 0.6.0 does.
        quote_version: version of quotes.
        td_report: version of the TD report; 1.5 needs quotes of version 5.
        faults: false values that the VM shows.

    Raises:
        ValueError: a TD report 1.5 in quotes of version 4, which cannot contain it.
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
