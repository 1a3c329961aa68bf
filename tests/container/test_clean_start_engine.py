"""The clean start between two starts of a real container engine whose store an operator has prepared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.deployment import CLEAN_START
from trainer.deployment.clean_start import VOLUME_NAME

START_SECONDS = 60.0

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("docker", "dockerd", "unshare"))),
    reason="needs root and a container engine",
)


class RestartedEngine:
    """A container engine that is started again over its store, in a network namespace of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.lib = root, root / "lib"
        (self.lib / "docker").mkdir(parents=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        command = [
            "unshare", "--net", "dockerd", "--data-root", self.lib / "docker", "--exec-root", self.root / "exec",
            "--pidfile", self.root / "pid", "--host", f"unix://{self.root}/s", "--storage-driver", "vfs",
            "--bridge", "none", "--iptables=false",
        ]  # fmt: skip
        with (self.root / "log").open("ab") as log:
            process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while self.call("version", check=False).returncode:
                assert process.poll() is None, (self.root / "log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(START_SECONDS)

    def call(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["docker", "--host", f"unix://{self.root}/s", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=check)

    def lines(self, *arguments: object) -> list[str]:
        return self.call(*arguments).stdout.split()

    def clean_start(self) -> None:
        """Runs the script on this engine's store."""
        script = CLEAN_START.replace("/var/lib/", f"{self.lib}/").replace("systemctl", "false")
        assert "/var/lib" not in script
        subprocess.run(
            ["bash", "-c", 'set -e; source <(printf "%s" "$S")'], env={**os.environ, "S": script}, check=True
        )


@pytest.fixture(name="engine")
def restarted_engine(tmp_path: Path) -> RestartedEngine:
    return RestartedEngine(tmp_path)


def plant(engine: RestartedEngine) -> None:
    """Leaves what another version of the app can: a container that restarts, a volume bound to /etc."""
    root = engine.root / "image.tar"
    with tarfile.open(root, "w") as archive:
        archive.add("/bin/true", "bin/true")
    engine.call("import", root, "planted:1")
    engine.call("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/etc", VOLUME_NAME)
    engine.call("create", "--restart", "always", "--volume", f"{VOLUME_NAME}:/x", "planted:1", "/bin/true")


def test_an_engine_starts_empty_and_takes_over_the_volume(engine: RestartedEngine) -> None:
    data = engine.lib / "docker" / "volumes" / VOLUME_NAME / "_data"
    with engine.running():
        plant(engine)
        assert len(engine.lines("ps", "--all", "--quiet")) == 1
    (data / "dataset.age").write_text("sealed")
    (data / "run.sh").write_text("planted")
    engine.clean_start()
    with engine.running():
        assert engine.lines("ps", "--all", "--quiet") == []
        assert engine.lines("images", "--quiet") == []
        assert engine.lines("volume", "ls", "--quiet") == [VOLUME_NAME]
        engine.call("volume", "create", VOLUME_NAME)  # as compose does: it takes what is there
        (volume,) = json.loads(engine.call("volume", "inspect", VOLUME_NAME).stdout)
        assert not volume["Options"]
        assert Path(volume["Mountpoint"]) == data
    assert [path.name for path in data.iterdir()] == ["dataset.age"]
    assert (data / "dataset.age").read_text() == "sealed"
