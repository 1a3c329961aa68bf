"""The registry of lies: each takes hold where it says, and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from trainer.simulator.agent import SimulatedVm, VmOptions
from trainer.simulator.appraisal_world import APP_COMPOSE
from trainer.simulator.fault import Fault, FaultLayer, apply_faults
from trainer.simulator.faults import FAULTS, find_faults

COMPOSE = APP_COMPOSE
SEED = b"a seed of 32 bytes for all faults"
NOW = 1_790_000_000

SEEN_IN: dict[FaultLayer, set[str]] = {
    FaultLayer.PKI: {"quote", "collateral"},
    FaultLayer.EVENTS: {"quote", "td", "event_log"},
    FaultLayer.TD: {"quote", "td"},
    FaultLayer.PARTS: {"quote"},
    FaultLayer.QUOTE: {"quote"},
    FaultLayer.EVENT_LOG: {"event_log"},
    FaultLayer.EVENT_LOG_TEXT: {"event_log"},
    FaultLayer.VM_CONFIG: {"vm_config"},
    FaultLayer.APP_COMPOSE: {"compose"},
    FaultLayer.KEY_SEED: {"key"},
    FaultLayer.KEY: {"key"},
    FaultLayer.GPU_INFO: {"gpu"},
    FaultLayer.COLLATERAL_TERMS: {"collateral"},
    FaultLayer.TCB_INFO: {"collateral"},
    FaultLayer.QE_IDENTITY: {"collateral"},
    FaultLayer.COLLATERAL: {"collateral"},
}


def simulated(*faults: Fault) -> SimulatedVm:
    return SimulatedVm(COMPOSE, SEED, options=VmOptions(gpu_attestation="findings", faults=faults))


def everything(vm: SimulatedVm) -> dict[str, Any]:
    """What a VM shows, place by place."""
    return {
        "quote": vm.quote(b"data").quote,
        "td": vm.td_fields(b"data"),
        "event_log": vm.event_log(),
        "vm_config": vm.vm_config,
        "compose": vm.shown_compose,
        "key": vm.derive_key("path", "purpose"),
        "gpu": vm.gpu_attestation,
        "collateral": vm.collateral(NOW),
    }


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    return everything(simulated())


@pytest.mark.parametrize("name", FAULTS)
def test_a_lie_is_seen_in_its_own_place_only(honest: dict[str, Any], name: str) -> None:
    lying = everything(simulated(FAULTS[name]))
    changed = {place for place in honest if lying[place] != honest[place]}
    assert changed
    assert changed <= SEEN_IN[FAULTS[name].layer]


@pytest.mark.parametrize(
    "name", [name for name, fault in FAULTS.items() if fault.layer is FaultLayer.TD]
)
def test_a_lie_about_the_td_is_about_one_field(honest: dict[str, Any], name: str) -> None:
    before, after = vars(honest["td"]), vars(simulated(FAULTS[name]).td_fields(b"data"))
    assert len([field for field in before if before[field] != after[field]]) == 1


def test_every_layer_has_a_lie() -> None:
    assert {fault.layer for fault in FAULTS.values()} == set(FaultLayer) == set(SEEN_IN)


def test_names_and_descriptions_can_be_listed() -> None:
    for name, fault in FAULTS.items():
        assert name == fault.name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert fault.description
        assert "\n" not in fault.description


def test_lies_of_one_layer_are_told_one_after_the_other() -> None:
    first = dataclasses.replace(FAULTS["gpu-text"], change=lambda text: text + "1")
    second = dataclasses.replace(first, change=lambda text: text + "2")
    assert apply_faults((first, second), FaultLayer.GPU_INFO, "0") == "012"
    assert apply_faults((first, second), FaultLayer.APP_COMPOSE, "0") == "0"


def test_a_lie_follows_later_events() -> None:
    vm = simulated(*find_faults(["missing-system-ready"]))
    vm.emit_event("mine", b"payload")
    assert [entry["event"] for entry in json.loads(vm.event_log())][-2:] == ["storage-fs", "mine"]
