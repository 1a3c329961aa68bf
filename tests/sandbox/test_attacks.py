"""Each attack by each process, under each kind of user, is refused by the kernel."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.attacks import (
    ALLOWED,
    ATTACKS,
    GUEST_AGENT,
    KERNEL,
    OF_WORKER,
    OTHER_FILES,
    PROGRAMS,
)
from tests.sandbox.conftest import MODES
from trainer.sandbox import landlock

REFUSED = {"EPERM", "EACCES", "ENOSYS"}
NEEDS_LANDLOCK = {*OTHER_FILES, *OF_WORKER}
"""Refused to the same user by Landlock alone."""
ANYBODY_CAN = {*GUEST_AGENT, *PROGRAMS, *OTHER_FILES, *OF_WORKER, "connect_tcp", "send_udp", "bind_tcp"} - {
    "open_disk"
}
"""No machine that runs these tests refuses them by itself."""
CASES = [(role, attack) for role, attacks in ATTACKS.items() for attack in attacks]
NEEDS = [(role, what) for role, allowed in ALLOWED.items() for what in allowed]


@pytest.mark.parametrize("outcomes", MODES, indirect=True)
@pytest.mark.parametrize(("role", "attack"), CASES, ids=[f"{role}-{attack}" for role, attack in CASES])
def test_refused(outcomes: dict[str, Any], role: str, attack: str) -> None:
    if attack in NEEDS_LANDLOCK and landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
    outcome = outcomes[role]["attacks"][attack]
    accepted = REFUSED | ({"EXDEV"} if attack in {"rename_out", "hard_link_outside"} else set())
    assert outcome in accepted, f"{role}: {attack}: {outcome}"


@pytest.mark.parametrize("outcomes", ["unconfined"], indirect=True)
@pytest.mark.parametrize("attack", ATTACKS["worker"])
def test_works_without_walls(outcomes: dict[str, Any], attack: str) -> None:
    """The same attack by the same code meets no wall where none was put up: what refuses is what is tested."""
    outcome = outcomes["worker"]["attacks"][attack]
    if outcome in REFUSED and attack not in ANYBODY_CAN:
        pytest.skip(f"refused on this machine even without walls: {outcome}")
    assert outcome not in REFUSED


@pytest.mark.parametrize("outcomes", MODES, indirect=True)
@pytest.mark.parametrize(("role", "what"), NEEDS, ids=[f"{role}-{what}" for role, what in NEEDS])
def test_still_possible(outcomes: dict[str, Any], role: str, what: str) -> None:
    assert outcomes[role]["allowed"][what] == "worked"


@pytest.mark.parametrize("outcomes", ["three-users"], indirect=True)
def test_three_users(outcomes: dict[str, Any]) -> None:
    assert outcomes["separate"]
    assert len({outcomes[role]["uid"] for role in ("supervisor", "front", "worker")}) == 3


@pytest.mark.parametrize("outcomes", MODES, indirect=True)
@pytest.mark.parametrize("role", ["supervisor", "front", "worker"])
def test_what_was_measured_is_what_the_attacks_met(outcomes: dict[str, Any], role: str) -> None:
    walls = outcomes[role]["walls"]
    expected = {
        wall
        for wall in walls
        if not wall.endswith(("_memory_locked", "_own_network"))
        and (landlock.abi() > 0 or not wall.endswith("_files_confined"))
    }
    assert {wall for wall, stands in walls.items() if stands} >= expected
    assert len(walls) >= 8


def test_there_are_enough_attacks() -> None:
    assert len(KERNEL) >= 20
    assert len({attack for _, attack in CASES}) >= 60
