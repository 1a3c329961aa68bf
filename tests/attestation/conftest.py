"""One whole, honest appraisal on the development simulator; tests change one thing in it at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer.simulator.appraisal_world import World, honest_world
from trainer.simulator.gpu_evidence import GpuEvidenceMaker


@pytest.fixture
def make_world() -> Callable[..., World]:
    """Makes the honest world on a VM with other options, or on a given one."""
    return honest_world


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """The honest world: GPU, live connection, and a policy that demands everything."""
    return make_world()


@pytest.fixture
def gpus() -> GpuEvidenceMaker:
    """What GPU reports and their certificates are made with."""
    return GpuEvidenceMaker()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a unix socket in it, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="tee-") as folder:
        yield Path(folder)
