"""A fault of the simulator: one change of one value in its responses, and the check that must detect it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FaultLayer(StrEnum):
    """Which value a fault changes; the docstring of each member names the type of that value."""

    PKI = "pki"
    """Keyword arguments of `DevelopmentPki`: another platform or other certificates."""
    EVENTS = "events"
    """`tuple[Event, ...]`: the measured events. The registers are computed from them, so the log replays."""
    TD = "td"
    """`TdFields`: the TD report, before it is signed."""
    PARTS = "parts"
    """`QuoteParts`: header, quoting enclave and certificate chain, before they are signed."""
    QUOTE = "quote"
    """`bytes`: the signed quote."""
    EVENT_LOG = "event-log"
    """`list[dict]`: the event log in responses, independent of what was measured."""
    EVENT_LOG_TEXT = "event-log-text"
    """`str`: the JSON text of the event log."""
    VM_CONFIG = "vm-config"
    """`dict`: the host's configuration of the VM."""
    APP_COMPOSE = "app-compose"
    """`str`: the compose text in responses, independent of what was measured."""
    KEY_SEED = "key-seed"
    """`bytes`: seed of the key service."""
    KEY = "key"
    """`SimulatedKey`: a key with its chain of signatures."""
    GPU_INFO = "gpu-info"
    """`str`: the GPU attestation in responses, independent of what was measured."""
    COLLATERAL_TERMS = "collateral-terms"
    """Keyword arguments of `DevelopmentPki.collateral`."""
    TCB_INFO = "tcb-info"
    """`dict`: TCB info, before it is signed."""
    QE_IDENTITY = "qe-identity"
    """`dict`: QE identity, before it is signed."""
    COLLATERAL = "collateral"
    """`dict[str, str]`: the finished collateral."""


@dataclass(frozen=True)
class Fault:
    """One false value.

    Attributes:
        layer: which value it changes.
        name: kebab-case.
        code: code of the check that must detect it.
        description: the false value in one line.
        change: takes the true value of the layer and returns the false one; it does not modify its argument.
        also: codes of further checks that fail because of the same value.
    """

    layer: FaultLayer
    name: str
    code: str
    description: str
    change: Callable[[Any], Any]
    also: tuple[str, ...] = ()

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of all checks that must fail."""
        return (self.code, *self.also)


def apply_faults(faults: Iterable[Fault], layer: FaultLayer, honest: Any) -> Any:
    """Applies the faults of a layer to its true value, in order."""
    value = honest
    for fault in faults:
        if fault.layer is layer:
            value = fault.change(value)
    return value


def flip_middle_bit(data: bytes) -> bytes:
    """Returns `data` with the lowest bit of its middle byte flipped."""
    flipped = bytearray(data)
    flipped[len(flipped) // 2] ^= 1
    return bytes(flipped)
