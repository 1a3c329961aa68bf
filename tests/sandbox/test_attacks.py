"""Each attack by each process, under each kind of user, is refused by the kernel."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.attacks import (
    ATTACKS,
    GUEST_AGENT,
    KERNEL,
    OF_FRONT,
    OF_WORKER,
    OTHER_FILES,
    PROGRAMS,
    SUPERVISOR,
)
from tests.sandbox.channel_attacks import BY_FOLDER, BY_PROC, OBSERVED, OF_CHILDREN
from tests.sandbox.conftest import MODES, WITHOUT_LANDLOCK
from trainer.sandbox import landlock

REFUSED = {"EPERM", "EACCES", "ENOSYS", "EROFS", "own"}
"""`own`: it worked, in a directory that no other process sees."""
MOVES, OTHER_MOUNT = {"rename_out", "hard_link_outside"}, {"EXDEV"}
BY_NAME = {*OTHER_FILES, *OF_WORKER, *OF_FRONT, *SUPERVISOR, *BY_PROC, *OBSERVED, *OF_CHILDREN}
"""A name that leads nowhere in the mount namespace of the process is a refusal too."""
ANYBODY_CAN = {
    *GUEST_AGENT,
    *PROGRAMS,
    *OTHER_FILES,
    *OF_WORKER,
    "connect_tcp",
    "send_udp",
    "bind_tcp",
} - {"open_disk"}
"""No machine that runs these tests refuses them by itself."""
ROLES = tuple(ATTACKS)


def worked(outcomes: dict[str, Any], role: str) -> dict[str, str]:
    """The attacks of a role that the kernel did not refuse."""
    hidden = {"ENOENT"} if outcomes[role]["walls"].get(f"{role}_own_mounts") else set()
    return {
        attack: outcome
        for attack, outcome in outcomes[role]["attacks"].items()
        if outcome
        not in REFUSED
        | (hidden if attack in BY_NAME else set())
        | (OTHER_MOUNT if attack in MOVES else set())
    }


@pytest.mark.parametrize("outcomes", MODES, indirect=True)
@pytest.mark.parametrize("role", ROLES)
def test_refused(outcomes: dict[str, Any], role: str, needs_landlock: None) -> None:
    assert worked(outcomes, role) == {}


ANY_FOLDER = {
    *BY_FOLDER,
    "list_var",
    "write_outside",
    "read_world_readable",
    "change_world_writable",
}
OTHERS_IN_PROC = set(BY_PROC) - {"read_a_token_of_init"}
COUNTERS = {"counters_of_memory", "counters_of_processors", "names_of_sockets"}
WITHOUT_LANDLOCK_WORKS: dict[str, dict[str, set[str]]] = {
    # In mount namespaces of their own: /var, which holds nothing of the job, and for the worker all locks.
    "three-users": {
        "worker": {"list_var", "read_all_locks", "read_system_v"},
        "front": {"list_var", "names_of_sockets"},
        "supervisor": ANY_FOLDER,
    },
    "root": {
        "worker": {"list_var", "read_all_locks", "read_system_v"},
        "front": {"list_var", "names_of_sockets"},
        "supervisor": ANY_FOLDER,
    },
    # Without the right to make namespaces: what every user of a system may do.
    "as-deployed": {
        "worker": ANY_FOLDER | OTHERS_IN_PROC | {"list_ciphertext", "change_the_model"},
        "front": ANY_FOLDER | OTHERS_IN_PROC | COUNTERS,
        "supervisor": ANY_FOLDER,
    },
    # One user besides: nothing but a process's own memory is out of the others' reach.
    "ordinary-user": {
        "worker": ANY_FOLDER | set(BY_PROC) | set(OF_WORKER) - MOVES,
        "front": ANY_FOLDER | set(BY_PROC) | set(OF_FRONT) | COUNTERS,
        "supervisor": ANY_FOLDER,
    },
}
"""What a kernel without Landlock leaves open: docs/threat-model.md says it under Not covered."""


@pytest.mark.parametrize("outcomes", WITHOUT_LANDLOCK, indirect=True)
@pytest.mark.parametrize("role", ROLES)
def test_what_holds_without_landlock(outcomes: dict[str, Any], role: str) -> None:
    works = worked(outcomes, role)
    assert set(works) == WITHOUT_LANDLOCK_WORKS[outcomes["mode"]][role]
    assert set(works.values()) <= {"worked"}


@pytest.mark.parametrize("outcomes", [*MODES, *WITHOUT_LANDLOCK], indirect=True)
@pytest.mark.parametrize("role", ["front", "worker"])
def test_namespaces_of_its_own_are_claimed_where_they_were_made(
    outcomes: dict[str, Any], role: str
) -> None:
    walls = outcomes[role]["walls"]
    may_make_them = outcomes["mode"] in {"three-users", "root"}
    assert {walls[f"{role}_own_mounts"], walls[f"{role}_own_ipc"]} == {may_make_them}
    assert walls[f"{role}_no_shared_folders"] == (not set(BY_FOLDER) & set(worked(outcomes, role)))
    assert walls[f"{role}_no_shared_state"]


@pytest.mark.parametrize("outcomes", ["unconfined"], indirect=True)
@pytest.mark.parametrize("attack", ATTACKS["worker"])
def test_works_without_walls(outcomes: dict[str, Any], attack: str) -> None:
    """The same attack by the same code meets no wall where none was put up: what refuses is what is tested."""
    outcome = outcomes["worker"]["attacks"][attack]
    if outcome in REFUSED and attack not in ANYBODY_CAN:
        pytest.skip(f"refused on this machine even without walls: {outcome}")
    assert outcome not in REFUSED


@pytest.mark.parametrize("outcomes", [*MODES, *WITHOUT_LANDLOCK], indirect=True)
@pytest.mark.parametrize("role", ROLES)
def test_still_possible(outcomes: dict[str, Any], role: str) -> None:
    assert set(outcomes[role]["allowed"].values()) == {"worked"}, outcomes[role]["allowed"]


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
        if not wall.endswith(("_memory_locked", "_own_network", "_own_mounts", "_own_ipc"))
        and (landlock.abi() > 0 or not wall.endswith("_files_confined"))
    }
    assert {wall for wall, stands in walls.items() if stands} >= expected
    assert len(walls) >= 8


def test_there_are_enough_attacks() -> None:
    assert len(KERNEL) >= 20
    assert len({attack for attacks in ATTACKS.values() for attack in attacks}) >= 130
