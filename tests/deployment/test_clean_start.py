"""The clean start, run by a real shell as root on a tree that an operator has prepared."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainer.deployment import CLEAN_START
from trainer.deployment.clean_start import VOLUME_NAME
from trainer.job.checkpoints import CheckpointStore
from trainer.job.ciphertext import CiphertextDirectory
from trainer.sealing.sealed_checkpoint import CheckpointKeys

ROOT = Path(__file__).parents[2]
ENGINES = ("docker", "containerd", "containerd-stargz-grpc", "nerdctl", "sysbox")
CHECKPOINT = f"checkpoint-{'0a' * 8}-{7:016d}.age"
SEALED = ("dataset.age", "result.tar.age", "end.sealed", CHECKPOINT)

pytestmark = [
    pytest.mark.slow,  # each test runs a shell
    pytest.mark.skipif(
        os.geteuid() != 0, reason="gives files to root, as the script does in the VM"
    ),
]


class Guest:
    """The directories of a VM that the script works in, below a directory of the test."""

    def __init__(self, root: Path) -> None:
        self.lib = root / "lib"
        for engine in ENGINES:
            (self.lib / engine).mkdir(parents=True)
        self.docker = self.lib / "docker"
        self.volume = self.docker / "volumes" / VOLUME_NAME
        self.data = self.volume / "_data"
        self.powered_off = root / "powered-off"
        self.commands = root / "bin"
        self.commands.mkdir()
        self.stub("systemctl", f'printf "%s\\n" "$*" >{self.powered_off}\n')

    def stub(self, name: str, body: str) -> None:
        """Puts a command before those of the system."""
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{body}")
        path.chmod(0o755)

    def boot(self) -> subprocess.CompletedProcess[str]:
        """Runs the script as dstack's guest does: sourced by bash, which stops at errors."""
        script = CLEAN_START.replace("/var/lib/", f"{self.lib}/")
        assert script.count(str(self.lib)) == CLEAN_START.count("/var/lib/") == 5
        assert "/var/lib" not in script
        caller = 'set -e; source <(printf "%s" "$SCRIPT"); echo engine starts'
        return subprocess.run(
            ["bash", "-c", caller],
            env={"PATH": f"{self.commands}:{os.environ['PATH']}", "SCRIPT": script},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def paths(self) -> set[str]:
        """Everything below the engines' directories."""
        return {str(path.relative_to(self.lib)) for path in self.lib.rglob("*")} - set(ENGINES)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


EMPTY_STORE = {
    "docker/volumes",
    f"docker/volumes/{VOLUME_NAME}",
    f"docker/volumes/{VOLUME_NAME}/_data",
}


def with_files(*names: str) -> set[str]:
    return EMPTY_STORE | {f"docker/volumes/{VOLUME_NAME}/_data/{name}" for name in names}


def test_a_new_disk(guest: Guest) -> None:
    done = guest.boot()
    assert (done.returncode, done.stdout, done.stderr) == (0, "engine starts\n", "")
    assert guest.paths() == EMPTY_STORE
    assert not guest.powered_off.exists()


def plant_engine_state(guest: Guest) -> None:
    """What an engine that ran another version of the app leaves: in it, a container that restarts by itself."""
    container = guest.docker / "containers" / ("ab" * 32)
    container.mkdir(parents=True)
    (container / "config.v2.json").write_text('{"HostConfig":{"RestartPolicy":{"Name":"always"}}}')
    (container / "hostconfig.json").write_text(
        '{"RestartPolicy":{"Name":"always"},"Privileged":true}'
    )
    layer = guest.docker / "overlay2" / "layer" / "diff" / "opt" / "trainer"
    layer.mkdir(parents=True)
    (layer / "trainer").write_text("changed")
    setuid = guest.docker / "overlay2" / "layer" / "diff" / "su"
    setuid.write_text("x")
    setuid.chmod(0o4755)
    for name in ("image/overlay2", "network/files", "buildkit", "swarm", "plugins", "tmp"):
        (guest.docker / name).mkdir(parents=True)
        (guest.docker / name / "state.db").write_text("planted")
    (guest.docker / ".hidden").write_text("x")
    (guest.docker / "..two dots").write_text("x")
    (guest.docker / "a name\nof two lines").mkdir()
    for engine in ENGINES[1:]:
        (guest.lib / engine / "io.containerd.metadata.v1.bolt").mkdir()
        (guest.lib / engine / ".lock").write_text("")
    guest.data.mkdir(parents=True)
    (guest.docker / "volumes" / "metadata.db").write_text("volume database")
    (guest.docker / "volumes" / "other" / "_data").mkdir(parents=True)
    (guest.volume / "opts.json").write_text(
        '{"MountType":"none","MountOpts":"bind","MountDevice":"/"}'
    )


def test_everything_of_the_engine_is_gone_and_sealed_files_remain(guest: Guest) -> None:
    plant_engine_state(guest)
    for name in SEALED:
        (guest.data / name).write_text(f"content of {name}")
        (guest.data / name).chmod(0o6777)
        os.chown(guest.data / name, 901, 901)
    guest.data.chmod(0o1777)
    os.chown(guest.data, 901, 901)
    assert guest.boot().returncode == 0
    assert guest.paths() == with_files(*SEALED)
    for name in SEALED:
        status = (guest.data / name).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o644)
        assert (guest.data / name).read_text() == f"content of {name}"
    directory = guest.data.stat()
    assert (directory.st_uid, directory.st_gid, stat.S_IMODE(directory.st_mode)) == (0, 0, 0o755)


def test_the_second_boot_finds_what_the_first_one_left(guest: Guest) -> None:
    plant_engine_state(guest)
    (guest.data / "dataset.age").write_text("sealed")
    for _ in range(2):
        assert guest.boot().returncode == 0
    assert guest.paths() == with_files("dataset.age")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        directory = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no device nodes here")


PLANTED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "symlink": ("dataset.age", lambda path: path.symlink_to("/etc/shadow")),
    "symlink to a sealed file": ("checkpoint.age", lambda path: path.symlink_to("dataset.age")),
    "dangling symlink": ("result.tar.age", lambda path: path.symlink_to("absent")),
    "fifo": ("dataset.age", fifo),
    "socket": ("dataset.age", unix_socket),
    "device": ("dataset.age", device),
    "directory": ("dataset.age", lambda path: (path / "below.age").mkdir(parents=True)),
    "another name": ("run.sh", lambda path: path.write_text("x")),
    "another JSON file": ("other.json", lambda path: path.write_text("x")),
    "no suffix": ("dataset", lambda path: path.write_text("x")),
    "hidden": (".dataset.age", lambda path: path.write_text("x")),
    "option": ("-rf.age", lambda path: path.write_text("x")),
    "upper case": ("DATASET.age", lambda path: path.write_text("x")),
    "white space": ("data set.age", lambda path: path.write_text("x")),
    "new line": ("dataset\n.age", lambda path: path.write_text("x")),
    "the pattern itself": ("*.age", lambda path: path.write_text("x")),
    "command": ("$(id).age", lambda path: path.write_text("x")),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_no_sealed_file_is_removed(guest: Guest, kind: str) -> None:
    name, plant = PLANTED[kind]
    guest.data.mkdir(parents=True)
    plant(guest.data / name)
    (guest.data / "kept.tar.age").write_text("sealed")
    done = guest.boot()
    assert (done.returncode, done.stderr) == (0, "")
    assert guest.paths() == with_files("kept.tar.age")


@pytest.mark.parametrize("level", ["volumes", "volume", "_data"])
def test_a_link_in_the_path_of_the_volume_is_not_followed(
    guest: Guest, tmp_path: Path, level: str
) -> None:
    elsewhere = tmp_path / "elsewhere" / VOLUME_NAME / "_data"
    elsewhere.mkdir(parents=True)
    (elsewhere / "dataset.age").write_text("of the VM")
    link, target = {
        "volumes": (guest.docker / "volumes", elsewhere.parents[1]),
        "volume": (guest.volume, elsewhere.parent),
        "_data": (guest.data, elsewhere),
    }[level]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    assert guest.boot().returncode == 0
    assert guest.paths() == EMPTY_STORE
    assert (elsewhere / "dataset.age").read_text() == "of the VM"


def test_an_interrupted_boot_loses_no_sealed_file(guest: Guest) -> None:
    """The VM was switched off while files were moved: some are in the new directory, some still in the volume."""
    left = guest.docker / "sealed.abcdefgh"
    left.mkdir()
    (left / "dataset.age").write_text("moved")
    (left / "planted.sh").write_text("x")
    guest.data.mkdir(parents=True)
    (guest.data / CHECKPOINT).write_text("not moved yet")
    assert guest.boot().returncode == 0
    assert guest.paths() == with_files("dataset.age", CHECKPOINT)


def test_a_link_with_the_name_of_an_interrupted_boot_is_not_followed(
    guest: Guest, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dataset.age").write_text("of the VM")
    (guest.docker / "sealed.planted").symlink_to(elsewhere)
    assert guest.boot().returncode == 0
    assert guest.paths() == EMPTY_STORE
    assert (elsewhere / "dataset.age").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_removed_ends_the_vm(guest: Guest, engine: str) -> None:
    (guest.lib / engine / "immutable").write_text("x")
    real = shutil.which("rm")
    guest.stub("rm", f'case "$*" in *immutable*) exit 1 ;; esac\nexec {real} "$@"\n')
    done = guest.boot()
    assert done.returncode != 0
    assert "engine starts" not in done.stdout
    assert guest.powered_off.read_text() == "--force --force poweroff\n"


def test_a_removal_that_only_says_that_it_succeeded_ends_the_vm(guest: Guest) -> None:
    (guest.docker / "containers").mkdir()
    guest.stub("rm", "exit 0\n")
    assert "engine starts" not in guest.boot().stdout
    assert guest.powered_off.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_that_is_a_link_ends_the_vm(guest: Guest, tmp_path: Path, engine: str) -> None:
    shutil.rmtree(guest.lib / engine)
    (guest.lib / engine).symlink_to(tmp_path)
    assert "engine starts" not in guest.boot().stdout
    assert guest.powered_off.exists()


def test_engines_that_a_release_does_not_have_are_no_error(guest: Guest) -> None:
    for engine in ENGINES[1:]:
        (guest.lib / engine).rmdir()
    assert guest.boot().returncode == 0
    assert guest.paths() == EMPTY_STORE


def test_a_newer_guest_passes_the_script_on_unchanged(guest: Guest) -> None:
    """dstack 0.6 sources the exact bytes; 0.5 what `jq -r` prints, which ends in a line feed more."""
    assert CLEAN_START.endswith("\n")
    assert CLEAN_START.isascii()


# the product's names


def test_every_name_that_a_job_writes_is_retained(guest: Guest) -> None:
    directory = CiphertextDirectory(guest.data, persistent=True)
    keys = CheckpointKeys.__new__(CheckpointKeys)
    object.__setattr__(keys, "label", "0123456789abcdef")
    store = CheckpointStore.__new__(CheckpointStore)
    store.folder, store.keys = guest.data, keys
    properties = [
        name for name, value in vars(CiphertextDirectory).items() if isinstance(value, property)
    ]
    assert {"dataset", "result"} <= {*properties}
    names = [getattr(directory, name).name for name in properties] + [store.path(12).name]
    guest.data.mkdir(parents=True)
    for name in names:
        (guest.data / name).write_text("x")
    assert guest.boot().returncode == 0
    assert guest.paths() == with_files(*names)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("docker-compose*.yaml")), ids=lambda p: p.name
)
def test_the_compose_file_names_the_volume_that_the_script_retains(path: Path) -> None:
    compose = yaml.safe_load(path.read_text("utf-8"))
    assert [volume["name"] for volume in compose["volumes"].values()] == [VOLUME_NAME]
    assert re.findall(r"volumes/([\w-]+)$", CLEAN_START, re.MULTILINE) == [VOLUME_NAME]


# the form


def inner_script() -> str:
    found = re.search(
        r"<<'CLEAN_START'.*?\n(.*)^CLEAN_START$", CLEAN_START, re.MULTILINE | re.DOTALL
    )
    assert found
    return found[1]


def test_the_script_is_short_enough_to_review() -> None:
    assert len(CLEAN_START.splitlines()) <= 60
    assert max(map(len, CLEAN_START.splitlines())) <= 115


@pytest.mark.parametrize("part", ["outer", "inner"])
def test_shellcheck_finds_nothing(part: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / "script.sh"
    script.write_text(CLEAN_START if part == "outer" else inner_script())
    done = subprocess.run(
        ["shellcheck", "--shell=sh", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
