"""What boot claims about GPUs are affirmed, and what becomes of them where they are not demanded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attestation.gpu_boots import (
    DRIVER_CHAIN,
    GPU,
    NONCE,
    REPORT_CHAIN,
    VBIOS_CHAIN,
    World,
    booted,
    chain_with,
    header,
    shown,
    with_claims,
    with_devices,
    with_overall,
    with_switch,
    with_tokens,
)
from trainer.attestation.checks import Check, CheckState
from trainer.attestation.nvidia.boot_checks import OS_WORD
from trainer.attestation.nvidia.boot_claims import parse_boot_result
from trainer.attestation.nvidia.boot_event import GPU_EVENT
from trainer.simulator.agent import VmOptions
from trainer.simulator.event_log_writer import RuntimeEvent
from trainer.simulator.nvattest import SimulatedGpu, SimulatedSwitch, nvattest_result

Edit = Callable[[World], World]

BOOT_CODES = (
    "gpu-boot-claims",
    "gpu-boot-result",
    "gpu-boot-secure-boot",
    "gpu-boot-debug",
    "gpu-boot-nonce",
    "gpu-boot-revocation",
    "gpu-boot-count",
    "gpu-boot-models",
    "gpu-boot-versions",
)


def boot_checks(world: World) -> dict[str, Check]:
    return {check.code: check for check in world.appraise().checks if check.code in BOOT_CODES}


def boot_states(world: World) -> set[CheckState]:
    return {check.state for check in boot_checks(world).values()}


# what passes


def test_a_good_result_is_affirmed_by_the_oss_word(world: World) -> None:
    checks = boot_checks(world)
    assert {check.state for check in checks.values()} == {CheckState.AFFIRMED}
    assert {check.detail for check in checks.values()} == {OS_WORD}
    assert checks["gpu-boot-claims"].found == "1 GPUs, 0 switches, tokens that say the same"
    assert checks["gpu-boot-result"].found == "success for GPU-0"
    assert checks["gpu-boot-count"].found == "1 claims about 1 GPUs"
    assert checks["gpu-boot-nonce"].found == NONCE


@pytest.fixture
def h100(vectors: Path) -> str:
    return (vectors / "gpu" / "nvattest_h100.json").read_text()


def test_a_real_h100_passes_with_its_own_versions(world: World, h100: str) -> None:
    changed = (
        booted(world, h100).answering().demanding("gpu", fresh="any", count=1, models=("GH100",))
    )
    demanded = changed.demanding(
        "gpu", min_driver_version="580.159.03", min_vbios_version="96.00.D9.00.01"
    )
    assert demanded.contraindicated() == []
    assert boot_states(demanded) == {CheckState.AFFIRMED}
    newer = changed.demanding("gpu", min_driver_version="580.159.04")
    assert newer.contraindicated() == ["gpu-boot-versions"]


def test_a_real_h100s_result_changed_anywhere_is_refused_by_its_digest(
    world: World, h100: str
) -> None:
    measured = booted(world, h100)
    assert shown(measured, h100.rstrip("\n")).contraindicated() == ["gpu-boot"]
    assert boot_states(shown(measured, h100 + " ")) == {CheckState.NOT_REACHED}


def flags(device: SimulatedGpu | SimulatedSwitch) -> list[str]:
    """Names of a device's claims that must be true, but for secure boot, which has its own check."""
    return [
        name for name, value in device.claims(NONCE).items() if value is True and name != "secboot"
    ]


@pytest.mark.parametrize("name", flags(GPU))
def test_every_verification_of_a_gpu_counts(world: World, name: str) -> None:
    for changes, missing in (({name: False}, ()), ({}, (name,))):
        changed = with_claims(world, changes, missing)
        assert changed.contraindicated() == ["gpu-boot-result"]
        assert name.removeprefix("x-nvidia-gpu-") in str(changed.state("gpu-boot-result").found)


@pytest.mark.parametrize("name", flags(SimulatedSwitch()))
def test_every_verification_of_a_switch_counts(world: World, name: str) -> None:
    assert with_switch(world, changes={name: False}).contraindicated() == ["gpu-boot-result"]
    assert with_switch(world, missing=(name,)).contraindicated() == ["gpu-boot-result"]


@pytest.mark.parametrize("name", [REPORT_CHAIN, DRIVER_CHAIN, VBIOS_CHAIN])
def test_every_chain_counts(world: World, name: str) -> None:
    assert with_claims(world, {name: chain_with(status="invalid")}).contraindicated() == [
        "gpu-boot-result"
    ]
    revoked = with_claims(world, {name: chain_with(ocsp_status="revoked")})
    assert revoked.contraindicated() == ["gpu-boot-revocation"]


def test_eight_gpus_and_four_switches_pass(world: World) -> None:
    devices = [SimulatedGpu(ueid=str(number)) for number in range(8)]
    switches = [SimulatedSwitch(ueid=str(number)) for number in range(4)]  # numbers of another kind
    changed = (
        with_devices(world, *switches, *devices).answering().demanding("gpu", fresh="any", count=8)
    )
    assert changed.contraindicated() == []
    checks = boot_checks(changed)
    assert checks["gpu-boot-claims"].found == "8 GPUs, 4 switches, tokens that say the same"
    assert "SWITCH-3" in str(checks["gpu-boot-secure-boot"].found)
    assert str(checks["gpu-boot-models"].found).count("GH100") == 8


def test_more_than_ten_gpus_keep_their_order() -> None:
    devices = [SimulatedGpu(ueid=f"serial {number}") for number in range(12)]
    result = parse_boot_result(nvattest_result(devices, NONCE))
    assert [(gpu.name, gpu.ueid) for gpu in result.gpus][10] == ("GPU-10", "serial 10")


PASSING: dict[str, Edit] = {
    "unknown claims": lambda w: with_claims(
        w, {"x-nvidia-attester-claims": {"svn": 4}, "new": [{"deep": [1]}]}
    ),
    "an unknown key of the result": lambda w: with_devices(w, GPU, elapsed=1.5),
    "a nonce in capitals": lambda w: with_devices(w, GPU, nonce=NONCE.upper()),
    "no tokens": lambda w: with_devices(w, GPU, detached_eat=None),
    "an empty bundle of tokens": lambda w: with_devices(w, GPU, detached_eat={}),
    "a list of no mismatches": lambda w: with_claims(
        w, {"x-nvidia-mismatch-measurement-records": []}
    ),
    "no list of mismatches": lambda w: with_claims(
        w, {}, ("x-nvidia-mismatch-measurement-records",)
    ),
    "no description of the responder's answer": lambda w: with_claims(
        w, {REPORT_CHAIN: chain_with(ocsp_nonce_matches=None, ocsp_response_valid=None)}
    ),
    "a signed token, whose signature is not looked at": lambda w: with_tokens(
        w, lambda jwt: header("ES384")(jwt) + "AAAA"
    ),
    "a later driver": lambda w: with_devices(w, SimulatedGpu(driver_version="1000.1")),
    "a switch": with_switch,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_other_releases_write_passes(world: World, name: str) -> None:
    changed = PASSING[name](world)
    assert changed.contraindicated() == []
    assert boot_states(changed) == {CheckState.AFFIRMED}


def test_nonces_that_differ_in_case_are_the_same(world: World) -> None:
    assert with_overall(world, {"eat_nonce": NONCE.upper()}).contraindicated() == []


def test_a_boot_without_responder_leaves_revocation_open_and_says_so(world: World) -> None:
    silent = {"x-nvidia-cert-status": "valid"}
    chains = dict.fromkeys(
        (REPORT_CHAIN, DRIVER_CHAIN, "x-nvidia-gpu-vbios-rim-cert-chain"), silent
    )
    changed = with_claims(world, chains)
    check = changed.state("gpu-boot-revocation")
    assert (check.state, check.found) == (CheckState.NOT_DEMANDED, "not stated")
    assert "do not say" in str(check.detail)
    assert changed.contraindicated() == []


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("gpu-boot-debug", {"devtools": "any"}),
        ("gpu-boot-models", {"models": "any"}),
        ("gpu-boot-versions", {"min_driver_version": "any", "min_vbios_version": "any"}),
    ],
)
def test_what_the_policy_leaves_open_is_shown_all_the_same(
    world: World, code: str, changes: dict[str, str]
) -> None:
    check = world.demanding("gpu", **changes).state(code)
    assert (check.state, check.expected) == (CheckState.NOT_DEMANDED, None)
    assert str(check.found).startswith("GPU-0: ")


def test_a_count_that_is_left_open_still_is_the_measured_one(world: World) -> None:
    check = world.demanding("gpu", count="any").state("gpu-boot-count")
    assert (check.state, check.expected) == (CheckState.AFFIRMED, "1 different GPUs, as measured")


# where boot claims are not demanded


def test_claims_that_are_not_demanded_are_shown(world: World) -> None:
    bad = with_claims(world.demanding("gpu", boot="any"), {"secboot": False})
    assert bad.contraindicated() == []
    assert boot_states(bad) == {CheckState.NOT_DEMANDED}
    assert bad.state("gpu-boot-secure-boot").found == "not on GPU-0"


def test_unreadable_claims_that_are_not_demanded_are_left_open(world: World) -> None:
    changed = booted(world.demanding("gpu", boot="any"), "{}\n")
    assert changed.contraindicated() == []
    checks = boot_checks(changed)
    assert {check.state for check in checks.values()} == {CheckState.NOT_DEMANDED}
    assert (
        checks["gpu-boot-claims"].detail == "the boot claims cannot be read: result_code is not 0"
    )


def test_claims_that_were_not_measured_are_not_looked_at(world: World) -> None:
    for boot, state in (("required", CheckState.NOT_REACHED), ("any", CheckState.NOT_DEMANDED)):
        changed = shown(world.demanding("gpu", boot=boot), nvattest_result([GPU], "5c" * 32))
        assert changed.contraindicated() == ["gpu-boot"]
        assert boot_states(changed) == {state}
        assert "not the one that the OS measured" in str(changed.state("gpu-boot-claims").detail)
        assert {check.found for check in boot_checks(changed).values()} == {None}


def test_claims_that_cannot_be_read_leave_the_rest_unreached(world: World) -> None:
    checks = boot_checks(booted(world, "{}\n"))
    assert checks.pop("gpu-boot-claims").state is CheckState.CONTRAINDICATED
    assert {check.state for check in checks.values()} == {CheckState.NOT_REACHED}
    assert {check.detail for check in checks.values()} == {
        "the boot claims cannot be read: result_code is not 0"
    }


def test_without_an_event_nothing_of_the_boot_is_affirmed(make_world: Callable[..., World]) -> None:
    world = make_world(VmOptions())
    assert "gpu-required" in world.contraindicated()
    assert boot_states(world) == {CheckState.NOT_REACHED}
    assert world.state("gpu-cc-mode").state is CheckState.NOT_REACHED
    assert world.state("gpu-devtools").state is CheckState.NOT_DEMANDED
    assert boot_states(world.demanding("gpu", boot="any", required=False)) == {
        CheckState.NOT_DEMANDED
    }


@pytest.mark.parametrize("log", ["[", None])
def test_without_a_readable_event_nothing_of_the_boot_is_affirmed(
    world: World, log: str | None
) -> None:
    if log is None:
        changed = booted(world, world.gpu.boot, devices="one")
        assert changed.contraindicated() == ["gpu-boot"]
    else:
        changed = world.showing(event_log=log)
    assert boot_states(changed) == {CheckState.NOT_REACHED}
    assert boot_states(changed.demanding("gpu", boot="any")) == {CheckState.NOT_DEMANDED}


def test_an_event_may_have_more_keys_but_none_twice(world: World) -> None:
    assert booted(world, world.gpu.boot, ready=True).contraindicated() == []
    twice = RuntimeEvent(GPU_EVENT, b'{"devices": 1, "devices": 1}')
    events = tuple(
        twice if getattr(each, "name", "") == GPU_EVENT else each for each in world.vm.events
    )
    world.vm.replace_events(events)
    assert world.contraindicated() == ["gpu-boot"]
