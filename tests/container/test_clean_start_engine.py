"""The clean start between two starts of a real container engine whose store an operator has prepared."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.engine import Engine
from trainer.deployment import CLEAN_START
from trainer.deployment.clean_start import VOLUME_NAME


@pytest.fixture
def restarted_engine(engine: Engine) -> Iterator[Engine]:
    """The tests' engine; what a test made in it is removed, and the images that others use are pulled again."""
    yield engine
    engine.docker("volume", "rm", VOLUME_NAME)
    engine.pull_again()


def plant(engine: Engine, folder: Path) -> None:
    """Leave what another version of the app can: a container that restarts, a volume bound to /etc."""
    root = folder / "image.tar"
    with tarfile.open(root, "w") as archive:
        archive.add("/bin/true", "bin/true")
    engine.docker("import", str(root), "planted:1")
    engine.docker(
        "volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/etc", VOLUME_NAME
    )
    engine.docker(
        "create", "--restart", "always", "--volume", f"{VOLUME_NAME}:/x", "planted:1", "/bin/true"
    )


def test_an_engine_starts_empty_and_takes_over_the_volume(
    restarted_engine: Engine, tmp_path: Path
) -> None:
    engine = restarted_engine
    data = engine.stores / "docker" / "volumes" / VOLUME_NAME / "_data"
    plant(engine, tmp_path)
    assert len(engine.docker("ps", "--all", "--quiet").split()) == 1
    (engine.path(data) / "dataset.age").write_text("sealed")
    (engine.path(data) / "run.sh").write_text("planted")
    engine.stop_daemons("dockerd", "containerd")
    engine.run_init_script(CLEAN_START)
    engine.start_daemons()
    assert engine.docker("ps", "--all", "--quiet") == ""
    assert engine.docker("images", "--quiet") == ""
    assert engine.docker("volume", "ls", "--quiet").split() == [VOLUME_NAME]
    engine.docker("volume", "create", VOLUME_NAME)  # as compose does: it takes what is there
    (volume,) = json.loads(engine.docker("volume", "inspect", VOLUME_NAME))
    assert not volume["Options"]
    assert Path(volume["Mountpoint"]) == data
    assert [path.name for path in engine.path(data).iterdir()] == ["dataset.age"]
    assert (engine.path(data) / "dataset.age").read_text() == "sealed"
