"""Attacks on the OS, the event log and the app: name -> (code that must answer, change)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.attestation.tampering import edited_log, index_of, measuring, removed, replaced
from trainer.attestation.policy import KeyProviderDemand, OsMeasurements, OsSection
from trainer.simulator.event_log_writer import RuntimeEvent

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

OTHER_OS = OsSection(
    measurements=(
        OsMeasurements(mrtd="00" * 48, rtmr0="00" * 48, rtmr1="00" * 48, rtmr2="00" * 48),
    )
)


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "another MRTD": ("os-measurements", lambda w: w.change(td={"mrtd": bytes(48)})),
    "another RTMR0": ("os-measurements", lambda w: w.change(td={"rtmr0": bytes(48)})),
    "another RTMR1": ("os-measurements", lambda w: w.change(td={"rtmr1": bytes(48)})),
    "another RTMR2": ("os-measurements", lambda w: w.change(td={"rtmr2": bytes(48)})),
    "an OS that nobody listed": ("os-measurements", lambda w: w.opened("os", OTHER_OS)),
    "no OS listed": ("os-measurements", lambda w: w.opened("os", OsSection())),
    "an image that cannot be recomputed": (
        "os-measurements",
        lambda w: w.opened("os", OsSection(image_sha256=("00" * 32,))),
    ),
    "an event log that is not JSON": ("event-log-format", lambda w: w.showing(event_log="[")),
    "a runtime event for RTMR2": (
        "event-log-format",
        lambda w: edited_log(w, lambda log: log[5].update(imr=2)),
    ),
    "a false digest": (
        "event-digests",
        lambda w: edited_log(w, lambda log: log[5].update(digest="00" * 48)),
    ),
    "a false preimage": (
        "event-digests",
        lambda w: edited_log(w, lambda log: log[5].update(preimage="00")),
    ),
    "a second app id": (
        "event-order",
        lambda w: measuring(
            w,
            lambda events: events.insert(
                index_of(events, "app-id"), RuntimeEvent("app-id", w.vm.app_id)
            ),
        ),
    ),
    "a system event after system-ready": (
        "event-order",
        lambda w: measuring(w, lambda events: events.append(RuntimeEvent("storage-fs"))),
    ),
    "no system-ready": ("event-order", lambda w: measuring(w, removed("system-ready"))),
    "two system-ready": (
        "event-order",
        lambda w: measuring(w, lambda events: events.append(RuntimeEvent("system-ready"))),
    ),
    "the wrong order": (
        "event-order",
        lambda w: measuring(
            w,
            lambda events: events.insert(
                index_of(events, "app-id"), events.pop(index_of(events, "boot-mr-done"))
            ),
        ),
    ),
    "an event left out of the log": (
        "rtmr3-replay",
        lambda w: edited_log(w, lambda log: log.pop(-2)),
    ),
    "an event added to the log": (
        "rtmr3-replay",
        lambda w: edited_log(w, lambda log: log.append(log[-2] | {"event": "mine"})),
    ),
    "a compose hash that was not measured": (
        "compose-hash",
        lambda w: w.showing(compose_hash="sha256:" + "00" * 32),
    ),
    "another compose hash measured": (
        "compose-hash",
        lambda w: measuring(w, replaced("compose-hash", bytes(32))),
    ),
    "an unlisted compose file": (
        "compose-accepted",
        lambda w: w.demanding("app", compose_sha256=("00" * 32,)),
    ),
    "another app id": ("app-id", lambda w: w.demanding("app", app_id="00" * 20)),
    "another key provider": (
        "key-provider",
        lambda w: w.demanding("app", key_provider=KeyProviderDemand(name="kms", id="00" * 32)),
    ),
    "a key provider event of another form": (
        "key-provider",
        lambda w: measuring(w, replaced("key-provider", b"kms")),
    ),
    "a key service where there must be none": (
        "key-provider",
        lambda w: w.demanding("app", key_provider=KeyProviderDemand(name="none", id="")),
    ),
    "a key service of the operator's own": (
        "key-provider",
        lambda w: measuring(w, replaced("key-provider", b'{"name": "kms", "id": "0b"}')),
    ),
    "keys of a key service where none must have issued them": (
        "key-chain",
        lambda w: w.demanding("app", kms_root_key="none"),
    ),
    "no clean start": (
        "init-scripts",
        lambda w: w.demanding("app", init_script_sha256=("00" * 32,)),
    ),
    "a script where there must be none": (
        "init-scripts",
        lambda w: w.demanding("app", init_script_sha256=()),
    ),
    "another script measured than the text has": (
        "init-scripts",
        lambda w: measuring(w, replaced("init-script-hash", bytes(32))),
    ),
    "a second script measured": (
        "init-scripts",
        lambda w: measuring(
            w,
            lambda events: events.insert(
                index_of(events, "init-script-hash"), RuntimeEvent("init-script-hash", bytes(32))
            ),
        ),
    ),
}
