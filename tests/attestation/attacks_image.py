"""Attacks on what the host says of the VM, where the OS is recomputed from its image: name -> (code, change)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.attestation.dstack import test_os_image
from trainer.attestation.policy import OsSection
from trainer.encoding import sha256_hex

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

CONFIG: dict[str, Any] = json.loads(test_os_image.vm_config(image="dstack-0.6.0"))
IMAGE = sha256_hex(base64.b64decode(CONFIG["tdx_measurement"]["checksum_file"]))
ACPI = [
    {
        "imr": event.imr,
        "event_type": event.kind,
        "digest": event.stated_digest.hex(),
        "event": event.name,
        "event_payload": event.payload.hex(),
    }
    for event in test_os_image.ACPI
]


def prepared(world: World) -> World:
    """The honest world on an OS that the policy knows by its image alone."""
    registers = test_os_image.measured(json.dumps(CONFIG)).model_dump()
    log = [*ACPI, *json.loads(world.evidence().event_log)]
    measured = world.change(td={name: bytes.fromhex(value) for name, value in registers.items()})
    shown = measured.showing(vm_config=json.dumps(CONFIG), event_log=json.dumps(log))
    return shown.opened("os", OsSection(image_sha256=(IMAGE,)))


def configured(world: World, **changes: Any) -> World:
    return world.showing(vm_config=json.dumps(CONFIG | changes))


def with_files(world: World, **changes: bytes) -> World:
    files = {name: base64.b64encode(data).decode() for name, data in changes.items()}
    return configured(world, tdx_measurement=CONFIG["tdx_measurement"] | files)


def with_acpi(world: World, edit: Callable[[list[Any]], None]) -> World:
    log = json.loads(world.evidence().event_log)
    edit(log)
    return world.showing(event_log=json.dumps(log))


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "another memory size": ("os-measurements", lambda w: configured(w, memory_size=4 << 30)),
    "a memory size that no machine has": (
        "os-measurements",
        lambda w: configured(w, memory_size=0),
    ),
    "another QEMU": ("os-measurements", lambda w: configured(w, qemu_version="8.2.2")),
    "another way to add pages": (
        "os-measurements",
        lambda w: configured(w, qemu_single_pass_add_pages=True),
    ),
    "no measurement files": ("os-measurements", lambda w: configured(w, tdx_measurement=None)),
    "checksums of another image": (
        "os-measurements",
        lambda w: with_files(w, checksum_file=b"00  other\n"),
    ),
    "measurements that the checksums do not pin": (
        "os-measurements",
        lambda w: with_files(w, measurement=b"{}"),
    ),
    "a configuration that is not JSON": (
        "os-measurements",
        lambda w: w.showing(vm_config=json.dumps(CONFIG)[:-1]).demanding("os", development="any"),
    ),
    "another ACPI table": (
        "os-measurements",
        lambda w: with_acpi(w, lambda log: log[1].update(digest="00" * 48)),
    ),
    "an ACPI table less": ("os-measurements", lambda w: with_acpi(w, lambda log: log.pop(2))),
    "ACPI tables in another order": (
        "os-measurements",
        lambda w: with_acpi(w, lambda log: log.insert(0, log.pop(1))),
    ),
    "an image for developers": (
        "os-development",
        lambda w: configured(w, image="dstack-dev-0.6.0"),
    ),
}
