"""dstack's event log: what happened in the VM, replayed into RTMR3.

Digests are recomputed from name and payload, never taken from the log: real agents leave them empty.

Source of both digest forms and of the system events' order: dstack 0.6.0, `cc-eventlog` and `dstack-util`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from trainer.encoding import canonical_json, parse_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Strict

RUNTIME_EVENT_TYPE: Final = 0x08000001
RUNTIME_IMR: Final = 3
REGISTER_BYTES: Final = 48
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
"""Names that only the measured OS may emit, in their order."""

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
    """One entry of the log, as the guest agent writes it."""

    imr: Annotated[int, Field(ge=0, le=3)]
    event_type: Annotated[int, Field(ge=0, le=2**32 - 1)]
    digest: Digest384 = ""
    event: Annotated[str, Field(max_length=256)]
    event_payload: Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=1 << 17)]
    version: Literal[1, 2] = 1
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
        stated_preimage: what the log says was hashed, where it says so.
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
        """Whether the OS or an application emitted it, rather than the firmware."""
        return self.kind == RUNTIME_EVENT_TYPE

    @property
    def preimage(self) -> bytes:
        """What is hashed for a runtime event.

        Version 1: type as 4 little-endian bytes, `:`, name, `:`, payload. Version 2: RFC 8785 JSON of name,
        payload in hex, and type.
        """
        if self.version == 1:
            return b":".join((self.kind.to_bytes(4, "little"), self.name.encode(), self.payload))
        return canonical_json({"name": self.name, "payload": self.payload.hex(), "type": self.kind})

    @property
    def digest(self) -> bytes:
        """SHA-384 of the preimage for a runtime event; the stated one for a firmware event, which has no other."""
        return hashlib.sha384(self.preimage).digest() if self.is_runtime else self.stated_digest


def parse_event_log(text: str) -> tuple[Event, ...]:
    """Read the JSON text of an event log.

    Raises:
        VerificationError: not an event log, or a runtime event for another register than RTMR3, or the reverse.
    """
    try:
        parse_json(text)
        logged = _LOG.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise _invalid(f"{where}: {first['msg']}") from None
    except ValueError as error:
        raise _invalid(str(error)) from None
    events = tuple(_event(entry) for entry in logged)
    for index, event in enumerate(events):
        if event.is_runtime != (event.imr == RUNTIME_IMR):
            raise _invalid(f"{index}: an event of type {event.kind:#x} for register {event.imr}")
    return events


def _invalid(message: str) -> VerificationError:
    return VerificationError(ErrorCode.EVIDENCE_INVALID, f"event log: {message}")


def _event(logged: _LoggedEvent) -> Event:
    return Event(
        imr=logged.imr,
        kind=logged.event_type,
        name=logged.event,
        payload=bytes.fromhex(logged.event_payload),
        version=logged.version,
        stated_digest=bytes.fromhex(logged.digest),
        stated_preimage=None if logged.preimage is None else bytes.fromhex(logged.preimage),
    )


def extend(digests: Sequence[bytes]) -> bytes:
    """A register after `digests`: from 48 zero bytes, SHA-384 of register and digest, one after the other."""
    register = bytes(REGISTER_BYTES)
    for digest in digests:
        register = hashlib.sha384(register + digest).digest()
    return register


def replay(events: Sequence[Event]) -> bytes:
    """RTMR3 as the runtime events give it."""
    return extend([event.digest for event in events if event.is_runtime])


def digest_problem(events: Sequence[Event]) -> str | None:
    """The first runtime event whose stated digest or preimage is not that of its name and payload, or None."""
    for event in events:
        if not event.is_runtime:
            continue
        if event.stated_digest not in (b"", event.digest):
            return f"the digest of {event.name!r} is not that of its name and payload"
        if event.stated_preimage not in (None, event.preimage):
            return f"the preimage of {event.name!r} is not made of its name and payload"
    return None


def order_problem(events: Sequence[Event]) -> str | None:
    """What is wrong with the order of the system events, or None."""
    names = [event.name for event in events if event.is_runtime]
    system = [name for name in names if name in SYSTEM_EVENTS]
    for name in REQUIRED_EVENTS:
        if name not in system:
            return f"no {name} event"
    repeated = [name for name in system if system.count(name) > 1 and name not in REPEATABLE_EVENTS]
    if repeated:
        return f"{repeated[0]} stands {system.count(repeated[0])} times"
    if system[-1] != SYSTEM_READY:
        return f"{system[-1]} after {SYSTEM_READY}"
    ranks = [SYSTEM_EVENTS.index(name) for name in system]
    wrong = next((index for index in range(1, len(ranks)) if ranks[index] < ranks[index - 1]), None)
    return None if wrong is None else f"{system[wrong]} after {system[wrong - 1]}"


def payload(events: Sequence[Event], name: str) -> bytes | None:
    """Payload of the first runtime event of that name, or None. Unique where `order_problem` found nothing."""
    return next((event.payload for event in events if event.is_runtime and event.name == name), None)


def payloads(events: Sequence[Event], name: str) -> tuple[bytes, ...]:
    """Payloads of all runtime events of that name before `system-ready`, in order."""
    runtime = [event for event in events if event.is_runtime]
    system = itertools.takewhile(lambda event: event.name != SYSTEM_READY, runtime)
    return tuple(event.payload for event in system if event.name == name)


@dataclass(frozen=True)
class KeyProvider:
    """Who gave the VM its keys: `kms`, `local-sgx`, `tpm` or `none`, and its identity in hex."""

    name: str
    identity: str


class _KeyProviderPayload(Strict):
    name: Annotated[str, Field(max_length=64)]
    id: Annotated[str, Field(max_length=4096)]


def key_provider(events: Sequence[Event]) -> KeyProvider | None:
    """The key provider as the OS measured it; None where the event is absent or not of its form."""
    try:
        text = payload(events, "key-provider") or b""
        parse_json(text)
        parsed = _KeyProviderPayload.model_validate_json(text)
    except ValueError:
        return None
    return KeyProvider(parsed.name, parsed.id)
