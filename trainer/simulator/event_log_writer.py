"""Writer of event logs: the events of dstack's boot in order, each with the register that it extends.

Sources: dstack's `cc-eventlog` crate (digests of runtime events, versions 1 and 2; form of an entry) and the real
0.6.0 log among the project's vectors (order).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from trainer.attestation.dstack import event_log
from trainer.encoding import canonical_json

RUNTIME_EVENT_TYPE: Final = 0x08000001
RUNTIME_REGISTER: Final = 3

BOOT_EVENT_TYPE: Final = 0x80000001
"""One of the TCG event types of firmware; verification of RTMR0 to RTMR2 reads digests only."""

SYSTEM_EVENTS: Final = frozenset(event_log.SYSTEM_EVENTS)
"""Names that only the measured OS may emit."""

EventVersion = Literal[1, 2]


@dataclass(frozen=True)
class BootEvent:
    """A digest that firmware or boot loader extended into RTMR0, RTMR1 or RTMR2."""

    register: int
    digest: bytes
    """48 bytes."""

    def entry(self, *, with_digest: bool) -> dict[str, object]:
        """Returns the event as a JSON object, always with its digest, which cannot be recomputed."""
        del with_digest
        return _log_entry(self.register, BOOT_EVENT_TYPE, self.digest, "", b"")


@dataclass(frozen=True)
class RuntimeEvent:
    """A named event in RTMR3. Its digest is a function of version, name and payload."""

    name: str
    payload: bytes = b""
    version: EventVersion = 1

    register = RUNTIME_REGISTER

    @property
    def preimage(self) -> bytes:
        """The hashed bytes; in version 1 `type ‖ ":" ‖ name ‖ ":" ‖ payload`, in version 2 canonical JSON."""
        if self.version == 1:
            kind = struct.pack("<I", RUNTIME_EVENT_TYPE)
            return b":".join((kind, self.name.encode(), self.payload))
        return canonical_json(
            {"name": self.name, "payload": self.payload.hex(), "type": RUNTIME_EVENT_TYPE}
        )

    @property
    def digest(self) -> bytes:
        """SHA-384 of the preimage."""
        return hashlib.sha384(self.preimage).digest()

    def entry(self, *, with_digest: bool) -> dict[str, object]:
        """Returns the event as a JSON object. From 0.6.0 on, the digests of runtime events in quotes are empty."""
        digest = self.digest if with_digest else b""
        entry = _log_entry(self.register, RUNTIME_EVENT_TYPE, digest, self.name, self.payload)
        if self.version == 1:
            return entry
        return entry | {"version": self.version, "preimage": self.preimage.hex()}


Event = BootEvent | RuntimeEvent


def replay(digests: Iterable[bytes]) -> bytes:
    """Extends a register, from zeros, by each digest: register = SHA-384(register ‖ digest); returns 48 bytes."""
    register = bytes(48)
    for digest in digests:
        register = hashlib.sha384(register + digest).digest()
    return register


def _log_entry(
    register: int, kind: int, digest: bytes, name: str, payload: bytes
) -> dict[str, object]:
    return {
        "imr": register,
        "event_type": kind,
        "digest": digest.hex(),
        "event": name,
        "event_payload": payload.hex(),
    }
