"""Measurements of the simulated OS: equal on every machine, and digests of a label that no real OS measures to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from trainer.simulator.event_log_writer import BootEvent, Event, replay

LABEL: Final = "confidential-trainer DEVELOPMENT simulated OS"
"""Each measurement is the SHA-384 digest of this label and the name of its register."""

SIMULATED_MRTD: Final = hashlib.sha384(f"{LABEL}: mrtd".encode()).digest()
"""The 48 bytes of MRTD of the simulated OS."""

# Firmware and boot loader of a real VM extend each register several times; one event gives a register as well.
BOOT_EVENTS: Final = tuple(
    BootEvent(index, hashlib.sha384(f"{LABEL}: rtmr{index}".encode()).digest())
    for index in range(3)
)
"""The events of firmware and boot loader: one digest for each of RTMR0 to RTMR2."""


@dataclass(frozen=True)
class Measurements:
    """Registers of the OS before an app starts, in hex; a policy can pin them."""

    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str


def simulated_measurements() -> Measurements:
    """Returns MRTD and RTMR0 to RTMR2 of the simulated OS."""
    registers = (register(BOOT_EVENTS, index).hex() for index in range(3))
    return Measurements(SIMULATED_MRTD.hex(), *registers)


def register(events: tuple[Event, ...], index: int) -> bytes:
    """Returns the 48 bytes of RTMR `index` after these events."""
    return replay(event.digest for event in events if event.register == index)
