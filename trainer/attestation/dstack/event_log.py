"""dstack's event log: parsing, replay into RTMR3, and the rules for the OS's own events.

Digests of runtime events are recomputed from name and payload, never taken from the log, where real agents leave
them empty. What the replay reaches is then exactly what the verifier reads.

Source of both digest forms and of the system events' order: dstack 0.6.0, `cc-eventlog` and `dstack-util`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Strict, parse_strict

RUNTIME_EVENT_TYPE: Final = 0x08000001  # dstack's own event type
RUNTIME_IMR: Final = 3  # index of RTMR3
REGISTER_BYTES: Final = 48  # SHA-384
MAX_EVENTS: Final = 4096

SYSTEM_READY: Final = "system-ready"

SYSTEM_EVENTS: Final = (
    "system-preparing",
    "app-id",
    "compose-hash",
    "init-script-hash",
    "gpu-policy-hash",
    "gpu-attestation",
    "instance-id",
    "boot-mr-done",
    "os-image-hash",
    "key-provider",
    "storage-fs",
    SYSTEM_READY,
)
"""Names that only the measured OS may emit, in the order of the boot.

After `system-ready`, RTMR3 is open to applications, which can extend it with events of any name.
"""

REQUIRED_EVENTS: Final = (
    "system-preparing",
    "app-id",
    "compose-hash",
    "boot-mr-done",
    "key-provider",
    SYSTEM_READY,
)
REPEATABLE_EVENTS: Final = frozenset({"init-script-hash"})
"""One event per script."""

Digest384 = Annotated[str, Field(pattern=r"^([0-9a-f]{96})?$")]


class _LoggedEvent(Strict):
    """One entry of the log in the guest agent's JSON."""

    imr: Annotated[int, Field(ge=0, le=3)]
    event_type: Annotated[int, Field(ge=0, le=2**32 - 1)]
    digest: Digest384 = ""
    event: Annotated[str, Field(max_length=256)]
    event_payload: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=1 << 17)]
    version: Annotated[int, Field(ge=1, le=2)] = 1
    preimage: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=1 << 17)] | None = None


_LOG: Final = TypeAdapter(Annotated[tuple[_LoggedEvent, ...], Field(max_length=MAX_EVENTS)])


@dataclass(frozen=True)
class Event:
    """One measured event.

    Attributes:
        imr: index of the register that it extends.
        kind: event type.
        name: event name; empty for most firmware events.
        payload: event payload.
        version: form of a runtime event's digest, 1 or 2.
        stated_digest: the digest in the log; empty where the log has none.
        stated_preimage: the preimage in the log; None where the log has none.
    """

    imr: int
    kind: int
    name: str
    payload: bytes
    version: int = 1
    stated_digest: bytes = b""
    stated_preimage: bytes | None = None

    @property
    def is_runtime(self) -> bool:
        """Whether the OS or an application emitted the event, and not the firmware."""
        return self.kind == RUNTIME_EVENT_TYPE

    @property
    def preimage(self) -> bytes:
        """The bytes that a runtime event's digest is made of.

        Version 1: type as 4 little-endian bytes, `:`, name, `:`, payload. Version 2: RFC 8785 JSON of name,
        payload in hex, and type.
        """
        if self.version == 1:
            return b":".join((self.kind.to_bytes(4, "little"), self.name.encode(), self.payload))
        return canonical_json({"name": self.name, "payload": self.payload.hex(), "type": self.kind})

    @property
    def digest(self) -> bytes:
        """SHA-384 of the preimage for a runtime event; the stated digest for a firmware event.

        A firmware event's preimage is not in the log. Its digest needs no proof: a false one replays to another
        register.
        """
        return hashlib.sha384(self.preimage).digest() if self.is_runtime else self.stated_digest


def parse_event_log(text: str) -> tuple[Event, ...]:
    """Parses the JSON text of an event log.

    Raises:
        VerificationError: not an event log, a runtime event for another register than RTMR3, or another event for
            RTMR3.
    """
    try:
        logged = parse_strict(_LOG, text)
    except ValueError as error:
        raise _invalid(str(error)) from None
    # Replay and lookup take every runtime event for one of RTMR3. An event that another reader would count
    # towards another register is refused.
    for index, entry in enumerate(logged):
        if (entry.event_type == RUNTIME_EVENT_TYPE) != (entry.imr == RUNTIME_IMR):
            raise _invalid(
                f"{index}: an event of type {entry.event_type:#x} for register {entry.imr}"
            )
    return tuple(
        Event(
            imr=entry.imr,
            kind=entry.event_type,
            name=entry.event,
            payload=bytes.fromhex(entry.event_payload),
            version=entry.version,
            stated_digest=bytes.fromhex(entry.digest),
            stated_preimage=None if entry.preimage is None else bytes.fromhex(entry.preimage),
        )
        for entry in logged
    )


def _invalid(message: str) -> VerificationError:
    return VerificationError(ErrorCode.EVIDENCE_INVALID, f"event log: {message}")


def extend(digests: Sequence[bytes]) -> bytes:
    """Returns a register after it was extended with `digests`.

    It starts as 48 zero bytes; each digest replaces it by SHA-384(register ‖ digest).
    """
    register = bytes(REGISTER_BYTES)
    for digest in digests:
        register = hashlib.sha384(register + digest).digest()
    return register


def replay(events: Sequence[Event]) -> bytes:
    """Returns the value of RTMR3 after all runtime events."""
    return extend([event.digest for event in events if event.is_runtime])


def digest_problem(events: Sequence[Event]) -> str | None:
    """Returns which runtime event's stated digest or preimage does not follow from name and payload, or None.

    The replay does not need the stated values. A false one is refused all the same: another reader may believe it.
    """
    for event in events:
        if not event.is_runtime:
            continue
        if event.stated_digest not in (b"", event.digest):
            return f"the digest of {event.name!r} is not that of its name and payload"
        if event.stated_preimage not in (None, event.preimage):
            return f"the preimage of {event.name!r} is not made of its name and payload"
    return None


def order_problem(events: Sequence[Event]) -> str | None:
    """Returns what is wrong with the order of the system events, or None.

    Each required event must be there, none twice, in the order of `SYSTEM_EVENTS`, and none after `system-ready`:
    an application could emit it.
    """
    names = [event.name for event in events if event.is_runtime]
    system = [name for name in names if name in SYSTEM_EVENTS]
    # Readers take the first event of a name. With each name once, and all before `system-ready`, the first is
    # the OS's: an application can only append.
    for name in REQUIRED_EVENTS:
        if name not in system:
            return f"no {name} event"
    repeated = [name for name in system if system.count(name) > 1 and name not in REPEATABLE_EVENTS]
    if repeated:
        return f"{repeated[0]} occurs {system.count(repeated[0])} times"
    if system[-1] != SYSTEM_READY:
        return f"{system[-1]} after {SYSTEM_READY}"
    positions = [SYSTEM_EVENTS.index(name) for name in system]
    for index in range(1, len(positions)):
        if positions[index] < positions[index - 1]:
            return f"{system[index]} after {system[index - 1]}"
    return None


def payload(events: Sequence[Event], name: str) -> bytes | None:
    """Returns the payload of the first runtime event of that name, or None.

    There is only one such event of the OS if `order_problem` finds nothing.
    """
    return next(
        (event.payload for event in events if event.is_runtime and event.name == name), None
    )


def payloads(events: Sequence[Event], name: str) -> tuple[bytes, ...]:
    """Returns the payloads of all runtime events of that name before `system-ready`, in order."""
    # Where a name may repeat, only the events of the boot count: an application can append more of them later.
    runtime = [event for event in events if event.is_runtime]
    system = itertools.takewhile(lambda event: event.name != SYSTEM_READY, runtime)
    return tuple(event.payload for event in system if event.name == name)


@dataclass(frozen=True)
class KeyProvider:
    """The key provider of the VM: `kms`, `local-sgx`, `tpm` or `none`, and its identity in hex."""

    name: str
    identity: str


class _KeyProviderPayload(Strict):
    name: Annotated[str, Field(max_length=64)]
    id: Annotated[str, Field(max_length=4096)]


_KEY_PROVIDER: Final = TypeAdapter(_KeyProviderPayload)


def key_provider(events: Sequence[Event]) -> KeyProvider | None:
    """Returns the key provider that the OS measured; None where the event is absent or malformed."""
    try:
        parsed = parse_strict(_KEY_PROVIDER, payload(events, "key-provider") or b"")
    except ValueError:
        return None
    return KeyProvider(parsed.name, parsed.id)
