"""All attacks on evidence that the tests make, from every file of this folder that has some, and the page of them.

A file joins by having `ATTACKS`: name -> (code of the check that must answer, change of the honest world).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.attestation.conftest import World

FOLDER = Path(__file__).parent
RUNNER = "tests/attestation/test_attacks.py::test_one_change_is_answered_by_its_own_code"


@dataclass(frozen=True)
class Attack:
    """One change of the honest world, and the one check that must answer it."""

    source: str
    name: str
    code: str
    change: Callable[[World], World]

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
    files = sorted((*FOLDER.glob("attacks_*.py"), *FOLDER.glob("test_*.py")))
    return tuple(attack for file in files for attack in _of(file.stem))


def _of(stem: str) -> list[Attack]:
    module = importlib.import_module(f"tests.attestation.{stem}")
    source = stem.removeprefix("attacks_").removeprefix("test_")
    found = getattr(module, "ATTACKS", {})
    return [Attack(source, name, str(code), change) for name, (code, change) in found.items()]
