"""The simulator's lies beside `test_attacks.py`: in other forms of quotes and logs, and over the real socket."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainer.attestation.evidence import GpuEvidence
from trainer.errors import ErrorCode, UnavailableError, UsageError
from trainer.job.job_keys import derive_keys
from trainer.simulator.agent import Release, SimulatedVm, VmOptions
from trainer.simulator.appraisal_world import APP_COMPOSE, SEALED_COMPOSE
from trainer.simulator.fault import Fault
from trainer.simulator.faults import FAULTS, find_faults
from trainer.simulator.state import open_vm
from trainer.tee.guest_agent import GuestAgent
from trainer.tee.quoted_evidence import collect

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

COMPOSE = APP_COMPOSE
SERVED_SECONDS = 30

OTHER_FORMS = (
    VmOptions(quote_version=5, td_report="1.5", event_version=2),
    VmOptions(quote_version=5, td_report="1.0", release=Release.V0_5),
)

ON_THE_WIRE = (
    "header-vendor",
    "another-root",
    "mr-owner",
    "pck-revoked",
    "forged-tcb-info",
    "digest-storage-fs",
    "compose-text",
    "unsigned-key",
)


def answered(world: World, fault: Fault) -> set[str]:
    return set(world.with_faults(fault).contraindicated())


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_lie_is_answered_alike_in_other_forms(
    make_world: Callable[..., World], form: VmOptions
) -> None:
    boot = make_world().vm.options.gpu_attestation
    world = make_world(dataclasses.replace(form, gpu_attestation=boot))
    assert world.contraindicated() == []
    found = {name: answered(world, fault) for name, fault in FAULTS.items()}
    assert found == {name: set(fault.codes) for name, fault in FAULTS.items()}


def test_two_lies_are_answered_by_both_checks(world: World) -> None:
    lying = world.with_faults(*find_faults(["mr-owner", "xfam-sse"]))
    assert lying.contraindicated() == ["td-xfam", "mr-owner"]


def test_a_lie_leaves_the_honest_world_alone(world: World) -> None:
    for fault in FAULTS.values():
        world.with_faults(fault).evidence()
    assert world.contraindicated() == []


def test_what_a_policy_is_made_from_stays_honest(world: World) -> None:
    lying = world.with_faults(
        *find_faults(["another-root", "compose-text", "key-service", "mrtd"])
    ).vm
    assert lying.pki.root_der == world.vm.pki.root_der
    assert lying.app_compose == world.vm.app_compose
    assert lying.key_service.root_public_key == world.vm.key_service.root_public_key


def test_names_are_unique_and_unknown_ones_refused() -> None:
    assert all(name == fault.name for name, fault in FAULTS.items())
    with pytest.raises(UsageError) as refused:
        find_faults(["mr-owner", "mr-owners"])
    assert refused.value.found == "mr-owners"


def test_a_lie_about_something_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="gpu-attestation"):
        SimulatedVm(COMPOSE, bytes(32), options=VmOptions(faults=find_faults(["gpu-cc-off"])))


@pytest.mark.parametrize("name", ["unsigned-key", "key-service", "init-script"])
def test_a_lie_about_a_key_service_needs_one(name: str) -> None:
    with pytest.raises(UsageError):
        SimulatedVm(SEALED_COMPOSE, bytes(32), options=VmOptions(faults=find_faults([name])))


@contextmanager
def simulator(folder: Path, *faults: str) -> Iterator[tuple[GuestAgent, str]]:
    """`trainer simulate` as a process of its own: its agent, and what it has said."""
    compose, socket, said = folder / "app-compose.json", folder / "agent.sock", folder / "stderr"
    compose.write_text(COMPOSE)
    command: list[str | Path] = [sys.executable, "-m", "trainer", "simulate", "--socket", socket]
    command += [
        "--state",
        folder / "state",
        "--app-compose",
        compose,
        *(word for name in faults for word in ("--fault", name)),
    ]
    with said.open("w") as errors:
        process = subprocess.Popen(command, stderr=errors)
    try:
        wait_until_it_listens(process, said)
        yield GuestAgent(str(socket)), said.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(SERVED_SECONDS)


def wait_until_it_listens(process: subprocess.Popen[bytes], said: Path) -> None:
    end = time.monotonic() + SERVED_SECONDS
    while "listening on" not in said.read_text():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < end
        time.sleep(0.02)


def world_of(make_world: Callable[..., World], state: Path, now: int) -> World:
    """A provider who trusts the VM in `state`, a development image, and wants no GPU."""
    world = make_world(vm=open_vm(state, COMPOSE, VmOptions()))
    lenient = (
        world.demanding("gpu", required=False).without_reports().demanding("os", development="any")
    )
    collateral = (state / "collateral.json").read_bytes()
    return lenient.change(now=now, collateral=collateral).claiming(
        issued_at=now - 60, expires_at=now + 600
    )


def shown_over_the_wire(agent: GuestAgent, world: World) -> World:
    keys = derive_keys(agent, world.claims.job_spec_sha256)
    claims = world.claims.model_copy(update={"derived_keys": keys.derived_keys})
    evidence = collect(
        agent,
        claims,
        possession=keys.prove_possession(claims),
        gpu=GpuEvidence(boot=agent.gpu_attestation()),
        key_chain=keys.key_chain,
    )
    return world.showing(**{name: getattr(evidence, name) for name in type(evidence).model_fields})


def test_an_honest_simulator_passes_over_the_wire(
    make_world: Callable[..., World], short_folder: Path
) -> None:
    with simulator(short_folder) as (agent, said):
        world = world_of(make_world, short_folder / "state", int(time.time()))
        assert shown_over_the_wire(agent, world).contraindicated() == []
        assert "NOT a TEE" in said
        assert "LYING" not in said


@pytest.mark.parametrize("name", ON_THE_WIRE)
def test_a_lie_reaches_the_wire(
    make_world: Callable[..., World], short_folder: Path, name: str
) -> None:
    with simulator(short_folder, name) as (agent, said):
        world = world_of(make_world, short_folder / "state", int(time.time()))
        found = shown_over_the_wire(agent, world).contraindicated()
        assert set(found) == set(FAULTS[name].codes)
        assert "NOT a TEE" in said
        assert f"LYING: {name}: " in said


def test_a_false_report_data_does_not_even_leave_the_job(
    make_world: Callable[..., World], short_folder: Path
) -> None:
    with simulator(short_folder, "report-data") as (agent, _):
        world = world_of(make_world, short_folder / "state", int(time.time()))
        with pytest.raises(UnavailableError) as refused:
            shown_over_the_wire(agent, world)
        assert refused.value.code is ErrorCode.GUEST_AGENT_PROTOCOL


def test_the_list_of_faults_names_each_with_its_check() -> None:
    command = [sys.executable, "-m", "trainer", "simulate", "--list-faults"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [tuple(line.split()[:2]) for line in lines] == [
        (name, fault.code) for name, fault in FAULTS.items()
    ]


def test_two_lies_may_be_told_at_once(make_world: Callable[..., World], short_folder: Path) -> None:
    with simulator(short_folder, "mr-owner", "advisory") as (agent, said):
        world = world_of(make_world, short_folder / "state", int(time.time()))
        assert shown_over_the_wire(agent, world).contraindicated() == ["tcb-advisories", "mr-owner"]
        assert said.count("LYING") == 2
        documents = json.loads((short_folder / "state" / "collateral.json").read_text())
        assert "INTEL-SA-00001" in documents["tcb_info"]
