"""Faults of the event log: in the measured events, so that the log replays, or in the responses only."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, Final

from trainer.errors import ErrorCode, UsageError
from trainer.simulator.event_log_writer import BOOT_EVENT_TYPE, BootEvent, Event, RuntimeEvent
from trainer.simulator.fault import Fault, FaultLayer

Events = tuple[Event, ...]
Log = list[dict[str, Any]]

_SYSTEM: Final = (
    "system-preparing",
    "app-id",
    "compose-hash",
    "instance-id",
    "boot-mr-done",
    "os-image-hash",
    "key-provider",
    "storage-fs",
    "system-ready",
)
"""Events of every simulated VM; a VM with a GPU has two more."""

_REQUIRED: Final = (
    "system-preparing",
    "app-id",
    "compose-hash",
    "boot-mr-done",
    "key-provider",
    "system-ready",
)
_JUDGED_BY_CONTENT: Final = ("app-id", "compose-hash", "key-provider")
_MISSING_TOO: Final = {
    "app-id": ("app-id", "key-chain"),
    "compose-hash": ("compose-hash",),
    "key-provider": ("key-provider",),
}
"""Further checks that fail without the event, because they read its payload."""


measured_fault: Final = functools.partial(Fault, FaultLayer.EVENTS)
"""Makes a fault of the measured events: registers and log agree, so replay alone cannot detect it."""

_shown_log_fault: Final = functools.partial(Fault, FaultLayer.EVENT_LOG)


def _change_at(name: str, change: Callable[[Any, int], Events]) -> Callable[[Events], Events]:
    """Returns the change that `change` makes of the events and the position of one of them.

    Raises:
        UsageError: when the change is applied, if the VM measures no such event: a fault must change something.
    """

    def changed(events: Events) -> Events:
        names = [getattr(event, "name", "") for event in events]
        if name not in names:
            raise UsageError(
                ErrorCode.USAGE,
                "a fault",
                expected=f"a VM that measures {name}",
                found="one that does not",
            )
        return change(events, names.index(name))

    return changed


def replace_payload(name: str, change: Callable[[bytes], bytes]) -> Callable[[Events], Events]:
    """Returns the change that replaces the payload of one event; raises as `_change_at` does."""
    return _change_at(
        name,
        lambda events, at: (
            *events[:at],
            dataclasses.replace(events[at], payload=change(events[at].payload)),
            *events[at + 1 :],
        ),
    )


def _replace_boot_digest(register: int) -> Callable[[Events], Events]:
    other = BootEvent(register, b"\7" * 48)
    return lambda events: tuple(other if event.register == register else event for event in events)


def _set_entry_fields(name: str, **changes: Any) -> Callable[[Log], Log]:
    """Returns the change of fields of one entry in a copy of the log; None removes the field."""

    def change(log: Log) -> Log:
        at = next(index for index, entry in enumerate(log) if entry["event"] == name)
        entry = {field: value for field, value in (log[at] | changes).items() if value is not None}
        return [*log[:at], entry, *log[at + 1 :]]

    return change


def _shown_each(name: str) -> tuple[Fault, ...]:
    """Returns the faults of one event in the log that is shown, each of one field."""
    false_digest, other_register = {"digest": "07" * 48}, {"imr": 2}
    return (
        _shown_log_fault(
            f"digest-{name}",
            "event-digests",
            f"a false digest of {name}",
            _set_entry_fields(name, **false_digest),
        ),
        _shown_log_fault(
            f"preimage-{name}",
            "event-digests",
            f"a false preimage of {name}",
            _set_entry_fields(name, preimage="07"),
        ),
        _shown_log_fault(
            f"register-{name}",
            "event-log-format",
            f"{name} in RTMR2",
            _set_entry_fields(name, **other_register),
        ),
        _shown_log_fault(
            f"type-{name}",
            "event-log-format",
            f"{name} as an event of the firmware",
            _set_entry_fields(name, event_type=BOOT_EVENT_TYPE),
        ),
    )


def _measured_each(name: str) -> tuple[Fault, ...]:
    """Returns the faults of the position of one measured event."""
    faults = [
        measured_fault(
            f"repeated-{name}",
            "event-order",
            f"{name} twice",
            _change_at(name, lambda events, at: (*events[: at + 1], *events[at:])),
        )
    ]
    if name != "system-ready":  # it is the last event already
        faults.append(
            measured_fault(
                f"late-{name}",
                "event-order",
                f"{name} after system-ready",
                _change_at(name, lambda events, at: (*events, events[at])),
            )
        )
    if name != "system-preparing":  # it is the first runtime event
        faults.append(
            measured_fault(
                f"early-{name}",
                "event-order",
                f"{name} before its turn",
                _change_at(
                    name,
                    lambda events, at: (
                        *events[: at - 1],
                        events[at],
                        events[at - 1],
                        *events[at + 1 :],
                    ),
                ),
            )
        )
    return tuple(faults)


_EVENTS: Final = (
    *(fault for name in _SYSTEM for fault in _measured_each(name)),
    *(
        measured_fault(
            f"missing-{name}",
            "event-order",
            f"no {name}",
            _change_at(name, lambda events, at: (*events[:at], *events[at + 1 :])),
            also=_MISSING_TOO.get(name, ()),
        )
        for name in _REQUIRED
    ),
    *(
        measured_fault(
            f"rtmr{index}-event",
            "os-measurements",
            f"RTMR{index} of another OS",
            _replace_boot_digest(index),
        )
        for index in range(3)
    ),
    measured_fault(
        "app-id",
        "app-id",
        "another app",
        replace_payload("app-id", lambda _: bytes(20)),
        also=("key-chain",),
    ),
    measured_fault(
        "compose-hash",
        "compose-hash",
        "another app-compose",
        replace_payload("compose-hash", lambda _: bytes(32)),
    ),
    measured_fault(
        "key-provider",
        "key-provider",
        "another key service",
        replace_payload(
            "key-provider", lambda text: json.dumps(json.loads(text) | {"id": "00"}).encode()
        ),
    ),
    measured_fault(
        "key-provider-name",
        "key-provider",
        "keys of this machine in place of a key service's",
        replace_payload(
            "key-provider",
            lambda text: json.dumps(json.loads(text) | {"name": "local-sgx"}).encode(),
        ),
    ),
    measured_fault(
        "init-script",
        "init-scripts",
        "another script that ran before the container engine",
        replace_payload("init-script-hash", lambda _: bytes(32)),
    ),
    measured_fault(
        "key-provider-form",
        "key-provider",
        "a key provider that cannot be read",
        replace_payload("key-provider", lambda _: b"kms"),
    ),
)

_LOG: Final = (
    *(fault for name in _SYSTEM for fault in _shown_each(name)),
    *(
        _shown_log_fault(
            f"payload-{name}",
            "rtmr3-replay",
            f"another payload of {name} shown than measured",
            # The preimage contains the payload and would contradict the false one.
            _set_entry_fields(name, event_payload="07", digest="", preimage=None),
        )
        for name in _SYSTEM
        if name not in _JUDGED_BY_CONTENT
    ),
    _shown_log_fault(
        "log-without-event",
        "rtmr3-replay",
        "a log without storage-fs",
        lambda log: [*log[:-2], log[-1]],
    ),
    _shown_log_fault(
        "log-with-event",
        "rtmr3-replay",
        "a log with an event that was not measured",
        lambda log: [*log, RuntimeEvent("mine").entry(with_digest=False)],
    ),
    _shown_log_fault(
        "log-version",
        "event-log-format",
        "events of version 3",
        _set_entry_fields("storage-fs", version=3),
    ),
    _shown_log_fault(
        "log-digest-length",
        "event-log-format",
        "a digest cut short",
        _set_entry_fields("storage-fs", digest="07"),
    ),
    _shown_log_fault(
        "log-field",
        "event-log-format",
        "a field that no log has",
        _set_entry_fields("storage-fs", more=1),
    ),
    Fault(FaultLayer.EVENT_LOG_TEXT, "log-empty", "event-log-format", "no event log", lambda _: ""),
    Fault(
        FaultLayer.EVENT_LOG_TEXT,
        "log-key-twice",
        "event-log-format",
        "a log that two readers understand differently",
        lambda text: text.replace('{"imr":0,', '{"imr":0,"imr":0,', 1),
    ),
)

EVENT_FAULTS: Final = (*_EVENTS, *_LOG)
