"""What a lie of the simulator is: one change of one thing that it shows, and the check that must answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Layer(StrEnum):
    """Where a fault takes hold, and what its change is given and returns."""

    PKI = "pki"
    """Keyword arguments of `DevelopmentPki`: another platform, other certificates."""
    EVENTS = "events"
    """`tuple[Event, ...]`: what was measured. Registers follow, so that the log replays."""
    TD = "td"
    """`TdFields`: the TD report, before it is signed."""
    PARTS = "parts"
    """`QuoteParts`: header, quoting enclave and certificate chain, before they are signed."""
    QUOTE = "quote"
    """`bytes`: the signed quote."""
    EVENT_LOG = "event-log"
    """`list[dict]`: the event log as it is shown, whatever was measured."""
    EVENT_LOG_TEXT = "event-log-text"
    """`str`: its JSON."""
    VM_CONFIG = "vm-config"
    """`dict`: what the host says of the VM's shape."""
    APP_COMPOSE = "app-compose"
    """`str`: the compose text as it is shown, whatever was measured."""
    KEY_SEED = "key-seed"
    """`bytes`: seed of the key service."""
    KEY = "key"
    """`DerivedKey`: a key with its chain of signatures."""
    GPU_INFO = "gpu-info"
    """`str`: the GPU attestation as it is shown, whatever was measured."""
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
    """One lie.

    Attributes:
        name: kebab-case.
        code: the check that answers it.
        description: the lie in one line.
        layer: where it takes hold.
        change: from the honest value of that layer to the false one; the honest one is left as it is.
        also: checks that this one field cannot but fail as well, after `code`.
    """

    name: str
    code: str
    description: str
    layer: Layer
    change: Callable[[Any], Any]
    also: tuple[str, ...] = ()

    @property
    def codes(self) -> tuple[str, ...]:
        """Every check that must answer."""
        return (self.code, *self.also)


def shown(faults: Iterable[Fault], layer: Layer, honest: Any) -> Any:
    """The value of a layer as a VM with these faults shows it."""
    value = honest
    for fault in faults:
        if fault.layer is layer:
            value = fault.change(value)
    return value
