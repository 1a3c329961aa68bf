"""Attacks on what the TD report says of the VM: name -> (code that must answer, change)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World


def with_xfam(world: World, bits: int) -> World:
    """A VM with CPU state beyond the usual."""
    return world.change(td={"xfam": (0x602E7 | bits).to_bytes(8, "little")})


ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "a debuggable TD": (
        "td-debug",
        lambda w: w.change(td={"td_attributes": b"\1\0\0\x10\0\0\0\0"}),
    ),
    "no SEPT_VE_DISABLE": ("td-attributes", lambda w: w.change(td={"td_attributes": bytes(8)})),
    "a migratable TD": (
        "td-attributes",
        lambda w: w.change(td={"td_attributes": b"\0\0\0\x30\0\0\0\0"}),
    ),
    "protection keys": (
        "td-attributes",
        lambda w: w.change(td={"td_attributes": b"\0\0\0\x50\0\0\0\0"}),
    ),
    "key locker": (
        "td-attributes",
        lambda w: w.change(td={"td_attributes": b"\0\0\0\x90\0\0\0\0"}),
    ),
    "performance monitoring": (
        "td-attributes",
        lambda w: w.change(td={"td_attributes": b"\0\0\0\x10\0\0\0\x80"}),
    ),
    "another TDX module of Intel's": (
        "mr-seam",
        lambda w: w.demanding("tcb", mr_seam=("11" * 48,)),
    ),
    "a reserved attribute": (
        "td-attributes",
        lambda w: w.change(td={"td_attributes": b"\0\0\0\x11\0\0\0\0"}),
    ),
    "processor trace": (
        "td-xfam",
        lambda w: w.change(td={"xfam": (0x602E7 | 1 << 8).to_bytes(8, "little")}),
    ),
    "CET that nobody allowed": ("td-xfam", lambda w: with_xfam(w, 0x1800)),
    "CET of the user alone that nobody allowed": ("td-xfam", lambda w: with_xfam(w, 0x800)),
    "UINTR that nobody allowed": ("td-xfam", lambda w: with_xfam(w, 0x4000)),
    "UINTR where CET is allowed": (
        "td-xfam",
        lambda w: with_xfam(w, 0x5800).demanding("platform", xfam=("CET",)),
    ),
    "branch records where all names are allowed": (
        "td-xfam",
        lambda w: with_xfam(w, 1 << 15).demanding("platform", xfam=("CET", "UINTR")),
    ),
    "no SSE": ("td-xfam", lambda w: w.change(td={"xfam": b"\1" + bytes(7)})),
    "an owner": ("mr-owner", lambda w: w.change(td={"mr_owner": b"\1" + bytes(47)})),
    "an owner's configuration": (
        "mr-owner-config",
        lambda w: w.change(td={"mr_owner_config": bytes(47) + b"\1"}),
    ),
    "another compose hash in MRCONFIGID": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": b"\1" + bytes(47)}),
    ),
    "MRCONFIGID with a tail": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": b"\1" + w.vm.compose_hash + bytes(14) + b"\1"}),
    ),
    "MRCONFIGID of an unknown form": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": b"\x09" + bytes(47)}),
    ),
    "MRCONFIGID zero but for its end": (
        "mr-config-id",
        lambda w: w.change(td={"mr_config_id": bytes(47) + b"\1"}),
    ),
}
