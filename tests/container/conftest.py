"""The image, built by scripts/image, in a real container engine."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.container.compose_plugin import unpack_plugins
from tests.container.engine import ROOT, Engine, missing_requirement

BUILD_SECONDS = 1800
"""Time limit of a test with the fixtures that it is the first to use: these may download wheels and packages."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))


@pytest.fixture(scope="session")
def container_cache() -> Path:
    """What stays between runs: wheels, base image, plugins. scripts/image has the same default."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "confidential-trainer"


@pytest.fixture(scope="session")
def requirements() -> None:
    """In continuous integration a missing engine is a failure; elsewhere the tests skip."""
    reason = missing_requirement()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def plugins(requirements: None, container_cache: Path) -> Path:
    """Directory with docker's command line plugins, `docker-compose` among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        image_base: Any = importlib.import_module("image_base")
    archive = next(
        source.address for source in image_base.apt_sources() if source.suite == image_base.SUITE
    )
    return unpack_plugins(container_cache, archive)


@pytest.fixture(scope="session")
def engine(plugins: Path) -> Iterator[Engine]:
    running = Engine(plugins)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@dataclass(frozen=True)
class BuiltImage:
    """An image in the engine.

    Attributes:
        reference: name with digest, as a compose file has it.
        output: what `scripts/image --json` printed.
    """

    engine: Engine
    reference: str
    output: dict[str, Any]

    def run(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a program in a new container without network; returns its standard output."""
        return self.engine.docker(
            "run",
            "--rm",
            "--network",
            "none",
            *options,
            "--entrypoint",
            command[0],
            self.reference,
            *command[1:],
        )

    def python(self, program: str) -> Any:
        """Run a Python program in the image; returns the JSON that it prints."""
        return json.loads(self.run("python", "-c", program))


@pytest.fixture(scope="session")
def cpu_image(
    engine: Engine, container_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> BuiltImage:
    """The image of this checkout, or the one in the output folder of scripts/image that TEST_IMAGE names."""
    if given := os.environ.get("TEST_IMAGE"):
        built = json.loads((Path(given) / "image.json").read_bytes())
    else:
        output = tmp_path_factory.mktemp("image")
        command = [
            str(ROOT / "scripts" / "image"),
            "cpu",
            "--base",
            "debian",
            "--in-memory",
            "--json",
        ]
        command += ["--cache", str(container_cache), "--output", str(output)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, "scripts/image says above why"
        built = json.loads(done.stdout)
    return BuiltImage(engine, engine.load(Path(built["image"]), "confidential-trainer"), built)
