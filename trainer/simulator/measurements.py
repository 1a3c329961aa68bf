"""What the simulated OS measures to: the same on every machine, and nothing that a real OS could."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from trainer.simulator.event_log_writer import BootEvent, Event, replay

LABEL: Final = "confidential-trainer DEVELOPMENT simulated OS"
"""Measurements of the simulated OS are SHA-384 digests of this label and their own names."""


@dataclass(frozen=True)
class Measurements:
    """What is measured before an app starts, in hex: a tuple that a policy can pin."""

    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str


def simulated_measurements() -> Measurements:
    """MRTD and RTMR0 to RTMR2 of the simulated OS: the same on every machine."""
    registers = (register(boot_events(), index).hex() for index in range(3))
    return Measurements(simulated_mrtd().hex(), *registers)


def simulated_mrtd() -> bytes:
    """MRTD of the simulated OS, 48 bytes."""
    return _constant("mrtd")


def boot_events() -> tuple[BootEvent, ...]:
    """What firmware and boot loader extend into RTMR0 to RTMR2: one digest each."""
    return tuple(BootEvent(index, _constant(f"rtmr{index}")) for index in range(3))


def register(events: tuple[Event, ...], index: int) -> bytes:
    """The 48 bytes of RTMR `index` after these events."""
    return replay(event.digest for event in events if event.register == index)


def _constant(name: str) -> bytes:
    return hashlib.sha384(f"{LABEL}: {name}".encode()).digest()
