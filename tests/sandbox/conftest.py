"""Real processes, confined by the project's own code, under each kind of user that a container may have."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sandbox.channel_attacks import NOTES, was_found
from trainer.job.workspace import is_memory
from trainer.sandbox import landlock
from trainer.sandbox.plan import Account, is_readable, software_paths
from trainer.sandbox.syscalls import SUPPORTED

ROOT = Path(__file__).parents[2]
NOBODY = Account(uid=65534, gid=65534)
SHM = Path("/dev/shm")
MODES = ("three-users", "as-deployed", "root", "ordinary-user")
WITHOUT_LANDLOCK = tuple(f"{mode}-without-landlock" for mode in MODES)

SPEC = {
    "version": 1,
    "model": {
        "model_name_or_path": "/model",
        "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
    },
    "train": {"engine": "transformers"},
}


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A directory that every user can walk to, read and write (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory(prefix="trainer-sandbox-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        for file in ("world-readable", "world-writable"):
            (folder / file).write_text("not for you")
            (folder / file).chmod(0o666)
        yield folder


@pytest.fixture(scope="session")
def open_python(open_folder: Path) -> list[str]:
    """An interpreter, with the project's packages, that other users can run too."""
    if all(
        is_readable(path, NOBODY) for path in [ROOT / "trainer", *software_paths()] if path.exists()
    ):
        return [sys.executable]
    packages = [path for path in sys.path if Path(path).name == "site-packages"]
    usable = [path for path in [str(ROOT), *packages] if is_readable(Path(path), NOBODY)]
    system = Path("/usr/bin") / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if len(usable) < len(packages) + 1 or not system.exists():
        pytest.skip(
            f"no Python {sys.version_info.major}.{sys.version_info.minor} here that other users can run"
        )
    venv = open_folder / "venv"
    subprocess.run([system, "-m", "venv", "--without-pip", venv], check=True, umask=0o022)
    (next(venv.glob("lib/python*/site-packages")) / "project.pth").write_text(
        "\n".join(usable) + "\n"
    )
    return [str(venv / "bin" / "python")]


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, int]]:
    """A TCP and a UDP port on both loopback addresses that take whatever comes."""
    with ExitStack() as stack:
        tcp = stack.enter_context(
            socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        udp = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.bind(("", 0))
        yield {"tcp_port": tcp.getsockname()[1], "udp_port": udp.getsockname()[1]}


@pytest.fixture(scope="session")
def guest_agent(open_folder: Path) -> Iterator[Path]:
    """A guest agent's socket that, as far as its mode goes, everybody may use."""
    path = open_folder / "agent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen(16)
        thread = threading.Thread(target=_accept_all, args=(listener,), daemon=True)
        thread.start()
        yield path


def _accept_all(listener: socket.socket) -> None:
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


@contextmanager
def folders(owner: Account | None) -> Iterator[tuple[Path, Path]]:
    """A base for the workspace, on tmpfs, and a ciphertext directory."""
    base = Path(tempfile.mkdtemp(prefix="trainer-test-", dir=SHM))
    ciphertext = Path(tempfile.mkdtemp(prefix="trainer-test-"))
    try:
        for folder in (base, ciphertext):
            folder.chmod(0o755)
            if owner is not None:
                os.chown(folder, owner.uid, owner.gid)
        yield base, ciphertext
    finally:
        shutil.rmtree(base)
        shutil.rmtree(ciphertext)


def skip_unless_possible(mode: str) -> None:
    """The reasons why a kernel or a user cannot have these walls."""
    if not SUPPORTED:
        pytest.skip("system call filters are written for x86-64")
    if not is_memory(SHM):
        pytest.skip("no tmpfs at /dev/shm")
    if mode != "ordinary-user" and os.geteuid() != 0:
        pytest.skip("needs root, to give it up")


@pytest.fixture(scope="session")
def outcomes(
    request: pytest.FixtureRequest,
    open_folder: Path,
    servers: dict[str, int],
    guest_agent: Path,
) -> dict[str, Any]:
    """What became of every attack; `request.param` is the mode."""
    mode: str = request.param.removesuffix("-without-landlock")
    skip_unless_possible(mode)
    python = (
        [sys.executable]
        if mode in {"root", "unconfined"}
        else request.getfixturevalue("open_python")
    )
    owner = NOBODY if mode == "ordinary-user" and os.geteuid() == 0 else None
    with folders(owner) as (base, ciphertext):
        given = {
            "spec": SPEC,
            "separate": mode in {"three-users", "as-deployed"},
            "landlock": mode == request.param,
            "confined": mode != "unconfined",
            "base": str(base),
            "targets": {
                "supervisor": 0,
                "init": 0,
                "workspace": "",
                "own": "",
                "other": "",
                "agent": str(guest_agent),
                "ciphertext": str(ciphertext),
                "open_folder": str(open_folder),
                **servers,
            },
        }
        prefix = as_deployed() if mode == "as-deployed" else []
        return {**run_household([*prefix, *python], given, owner), "mode": mode}


def as_deployed() -> list[str]:
    """Prefix of a command that runs it with the capabilities that the shipped compose file gives, and no more."""
    compose = yaml.safe_load((ROOT / "configs" / "docker-compose.yaml").read_text())
    added = ",".join(f"+{name.lower()}" for name in compose["services"]["trainer"]["cap_add"])
    return ["setpriv", "--no-new-privs", "--bounding-set", f"-all,{added}"]


def run_household(
    python: list[str], given: dict[str, Any], owner: Account | None
) -> dict[str, Any]:
    """Run `household.py`, as `owner` if there is one."""
    as_user: dict[str, Any] = (
        {"user": owner.uid, "group": owner.gid, "extra_groups": []} if owner is not None else {}
    )
    done = subprocess.run(
        [*python, "-P", "-m", "tests.sandbox.household"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        umask=0o022,
        **as_user,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    if "supervisor" in found:  # the children's are looked for by the supervisor
        for name in NOTES:
            was_found(found["supervisor"]["pid"], name)
    return found


@pytest.fixture
def needs_landlock() -> None:
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
