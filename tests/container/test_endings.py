"""However a job's container ends, the provider's same command finishes, and nothing is done twice.

A part of the matrix here; `scripts/soak endings` carries out more of it, and sets the environment variables below.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.container.conftest import BuiltImage
from tests.container.endings import ALL_CELLS, PROFILES, Cell, Deployment, Outcome, run_cell, table

CI_CELLS = (
    "stop:training:kms", "stop:sealing:sealed", "kill:opening:kms", "kill:upload:sealed", "kill:awaiting-pull:kms",
    "worker:preparing:kms", "front:upload:kms", "front:awaiting-pull:sealed",
    "supervisor:sealing:kms", "supervisor:awaiting-dataset:sealed",
    "engine:training:kms", "reboot:training:kms",
)  # fmt: skip
"""Each ending, each phase and both profiles occur."""


SECONDS = float(os.environ.get("SOAK_SECONDS", "36000"))
"""No further cell is begun after this time."""
BEGUN = time.monotonic()


def chosen() -> list[Cell]:
    """The cells of this run, those of every run first; SOAK_ENDINGS names parts of cells, or `all`."""
    often = [cell for cell in ALL_CELLS if str(cell) in CI_CELLS]
    wanted = os.environ.get("SOAK_ENDINGS", "").split()
    if not wanted:
        return often
    others = [cell for cell in ALL_CELLS if cell not in often]
    Random(1).shuffle(others)  # a run that is cut short has seen some of everything
    return [
        cell
        for cell in (*often, *others)
        if any(
            word == "all" or set(word.split(":")) <= set(str(cell).split(":")) for word in wanted
        )
    ]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[Outcome]]:
    """What the cells came to; printed as a table at the end."""
    made: list[Outcome] = []
    yield made
    print("\n" + table(made))


@pytest.fixture(scope="module")
def deployments(
    cpu_image: BuiltImage, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Deployment]]:
    """The job under each profile, with the adapter of a run that nothing interrupted."""
    made = {
        profile: Deployment(cpu_image, tmp_path_factory.mktemp(profile), profile, tiny_model)
        for profile in PROFILES
    }
    try:
        first = made[PROFILES[0]]
        uninterrupted = run_cell(
            first, Cell("", "", PROFILES[0]), tmp_path_factory.mktemp("uninterrupted")
        )
        assert uninterrupted.passed, uninterrupted
        for deployment in made.values():
            deployment.expected = first.expected
        yield made
    finally:
        for deployment in made.values():
            deployment.close()


@pytest.mark.parametrize("cell", chosen(), ids=str)
def test_the_same_command_finishes(
    cell: Cell, deployments: dict[str, Deployment], outcomes: list[Outcome], tmp_path: Path
) -> None:
    if time.monotonic() - BEGUN > SECONDS:
        pytest.skip("the time for this campaign is over")
    outcome = run_cell(deployments[cell.profile], cell, tmp_path)
    outcomes.append(outcome)
    if target := os.environ.get("SOAK_TABLE"):
        Path(target).write_text(table(outcomes) + "\n")
    log = (
        (tmp_path / "submit.log").read_text("utf-8", "replace")
        if (tmp_path / "submit.log").exists()
        else ""
    )
    assert outcome.passed, (
        f"{outcome}\n{log[-3000:]}\n{(tmp_path / 'events.jsonl').read_text()[-6000:]}"
    )
