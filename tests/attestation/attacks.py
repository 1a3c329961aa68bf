"""All attacks on evidence that the tests make, from every file below this folder that has some.

A file joins by having `ATTACKS`: name -> (code of the check that must answer, change of the honest world). Where
they start from another honest world, it has a function `prepared` that makes that one of the usual one. The
simulator's faults are attacks as well.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.simulator.fault import Fault
from trainer.simulator.faults import FAULTS

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

FOLDER = Path(__file__).parent
RUNNER = "test_attacks.py::test_answered_by_its_own_code"


@dataclass(frozen=True)
class Attack:
    """One change of the honest world, and the checks that must answer it: one, but for a few faults.

    Attributes:
        source: file, or `simulator`.
        name: name within it.
        description: what is done.
        codes: the check that the attack is meant for, and those that the same field cannot but fail as well.
        change: makes the attacked world.
    """

    source: str
    name: str
    description: str
    codes: tuple[str, ...]
    change: Callable[[World], World]

    @property
    def code(self) -> str:
        """The check that the attack is meant for."""
        return self.codes[0]

    @property
    def key(self) -> str:
        """Name of the test's parameter."""
        return f"{self.source}: {self.name}"

    @property
    def test(self) -> str:
        """Where pytest finds the attack."""
        return f"{RUNNER}[{self.key}]"


@cache
def attacks() -> tuple[Attack, ...]:
    """Every attack, file after file in the order of their names."""
    files = sorted((*FOLDER.rglob("attacks_*.py"), *FOLDER.rglob("test_*.py")))
    made = (attack for file in files for attack in _of(file))
    return (*made, *(_from_fault(fault) for fault in FAULTS.values()))


def _of(file: Path) -> list[Attack]:
    module = importlib.import_module(
        ".".join(("tests.attestation", *file.relative_to(FOLDER).with_suffix("").parts))
    )
    source = file.stem.removeprefix("attacks_").removeprefix("test_")
    found = getattr(module, "ATTACKS", {})
    prepared = getattr(module, "prepared", _as_it_is)
    return [
        Attack(
            source,
            name,
            name,
            (code,) if isinstance(code, str) else tuple(code),
            _after(prepared, change),
        )
        for name, (code, change) in found.items()
    ]


def _as_it_is(world: World) -> World:
    return world


def _after(
    first: Callable[[World], World], then: Callable[[World], World]
) -> Callable[[World], World]:
    return lambda world: then(first(world))


def _from_fault(fault: Fault) -> Attack:
    def change(world: World) -> World:
        return world.with_faults(fault)

    codes = tuple(str(code) for code in fault.codes)
    return Attack(
        "simulator", fault.name, f"{fault.description} (`--fault {fault.name}`)", codes, change
    )
