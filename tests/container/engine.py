"""A container engine for the tests: Debian's dockerd in namespaces of its own, with a registry on loopback.

Its processes, mounts and network are in one process namespace, one mount namespace and one network namespace. When
the first process of these ends, the kernel ends all others and removes the mounts, whatever went wrong before. No
engine that already runs on the machine is used, changed or in the way.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
REGISTRY_PORT: Final = 5000
"""In the engine's network namespace, where nobody else listens."""

START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 120.0
PROCESSES: Final = ("registry", "containerd", "dockerd")

REGISTRY_CONFIG: Final = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {folder}/data/registry}}
http: {{addr: 127.0.0.1:{port}}}
"""
CONTAINERD_CONFIG: Final = """\
version = 2
root = "{folder}/data/containerd"
state = "{folder}/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/containerd.sock"
"""


class EngineError(Exception):
    """The engine did not start, or a command failed; the message says what it said."""


def missing_requirement() -> str | None:
    """Return why no engine can run on this machine, or None."""
    if os.geteuid() != 0:
        return "a container engine needs root"
    listed = subprocess.run(
        [ROOT / "scripts" / "container-packages", "--missing"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        return f"not installed: {', '.join(listed.stdout.split())} (scripts/container-packages installs them)"
    namespaces = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if namespaces.returncode:
        return f"no namespaces for a container engine: {namespaces.stderr.strip()}"
    return None


class Engine:
    """The running engine.

    Args:
        plugins: directory with docker's command line plugins, `docker-compose` among them.
    """

    def __init__(self, plugins: Path) -> None:
        # Sockets have short paths: a path of more than 107 bytes cannot be bound.
        self.folder = Path(tempfile.mkdtemp(prefix="engine-"))
        self._data = self.folder / "data"
        self._plugins = plugins
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._loaded: list[str] = []
        self._first_process = 0

    def start(self) -> None:
        """Start namespaces, registry, containerd and dockerd; returns when all of them answer.

        Raises:
            EngineError: one ended, or does not answer in time.
        """
        (self.folder / "config").mkdir()
        (self.folder / "config" / "cli-plugins").symlink_to(self._plugins)
        (self.folder / "daemon.json").write_text("{}")
        (self.folder / "registry.yml").write_text(
            REGISTRY_CONFIG.format(folder=self.folder, port=REGISTRY_PORT)
        )
        (self.folder / "containerd.toml").write_text(CONTAINERD_CONFIG.format(folder=self.folder))
        self._make_namespaces()
        self._background("registry", "docker-registry", "serve", str(self.folder / "registry.yml"))
        self.start_daemons()

    def start_daemons(self) -> None:
        """Start containerd and dockerd over their stores; returns when dockerd answers.

        Raises:
            EngineError: one ended, or does not answer in time.
        """
        if "containerd" not in self._running:
            self._background(
                "containerd", "containerd", "--config", str(self.folder / "containerd.toml")
            )
            self._until("containerd", (self.folder / "containerd.sock").exists)
        self._background(
            "dockerd", "dockerd", "--config-file", str(self.folder / "daemon.json"),
            "--containerd", str(self.folder / "containerd.sock"), "--host", f"unix://{self.folder}/docker.sock",
            "--data-root", str(self._data / "docker"), "--exec-root", str(self.folder / "exec"),
            "--pidfile", str(self.folder / "dockerd.pid"),
        )  # fmt: skip
        self._until("dockerd", lambda: self._docker("version").returncode == 0)

    def stop_daemons(self, *names: str) -> None:
        """End dockerd, or others of `PROCESSES`, with SIGTERM, as at a shutdown; their stores stay.

        dockerd stops the containers first.
        """
        for name in names or ("dockerd",):
            process = self._running.pop(name)
            # nsenter forked: the daemon is its only child.
            (child,) = (
                Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
            )
            os.kill(int(child), signal.SIGTERM)
            process.wait(STOP_SECONDS)
            (self.folder / f"{name}.sock").unlink(missing_ok=True)

    def stop(self) -> None:
        """End everything and remove its data."""
        if (self.folder / "docker.sock").exists():
            containers = self._docker("ps", "--all", "--quiet").stdout.split()
            if containers:
                self._docker("rm", "--force", *containers)
        for process in reversed(self._running.values()):
            # `unshare --kill-child` takes the first process of the namespaces with it, and that all others.
            process.kill()
            process.wait(30)
        deadline = time.monotonic() + 30
        while self._first_process and Path(f"/proc/{self._first_process}").exists():
            assert time.monotonic() < deadline, f"process {self._first_process} does not end"
            time.sleep(0.05)
        shutil.rmtree(self.folder)

    # commands

    def docker(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a docker command; returns its standard output.

        Raises:
            EngineError: it failed.
        """
        done = self._docker(*arguments, environment=environment)
        if done.returncode:
            raise EngineError(f"docker {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what the engine knows of a container or an image."""
        (found,) = json.loads(self.docker("inspect", name))
        assert isinstance(found, dict)
        return found

    def load(self, layout: Path, name: str) -> str:
        """Put the image of an OCI layout into the registry and the engine; returns its name with digest."""
        (manifest,) = json.loads((layout / "index.json").read_bytes())["manifests"]
        repository = f"127.0.0.1:{REGISTRY_PORT}/{name}"
        copied = subprocess.run(
            self.in_network(
                "skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false",
                f"oci:{layout}", f"docker://{repository}:test",
            ),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if copied.returncode:
            raise EngineError(f"skopeo copy: {copied.stderr.strip()[-2000:]}")
        reference = f"{repository}@{manifest['digest']}"
        self._loaded.append(reference)
        self.docker("pull", "--quiet", reference)
        return reference

    def run_init_script(self, script: str) -> None:
        """Run a VM's init script on this engine's stores; the VM does so before it starts the engine.

        Raises:
            subprocess.CalledProcessError: the script would have ended the VM.
        """
        moved = script.replace("/var/lib/", f"{self._data}/").replace("systemctl", "false")
        assert "/var/lib" not in moved
        command = ["bash", "-c", 'set -e; source <(printf "%s" "$SCRIPT")']
        subprocess.run(self.in_mounts(*command), env={**os.environ, "SCRIPT": moved}, check=True)

    def pull_again(self) -> None:
        """Pull the images that `load` brought and that are gone with a store."""
        for reference in self._loaded:
            self.docker("pull", "--quiet", reference)

    @property
    def network(self) -> int:
        """Process id in the engine's namespaces."""
        return self._first_process

    @property
    def stores(self) -> Path:
        """Directory of the stores `docker` and `containerd`, in the engine's mount namespace."""
        return self._data

    def path(self, path: Path | str) -> Path:
        """Return where a path of the engine's mount namespace is for this process."""
        return Path(f"/proc/{self._first_process}/root{path}")

    def in_mounts(self, *command: str) -> list[str]:
        """Return a command that runs in the engine's mount namespace, and so in the processes that /proc shows."""
        return ["nsenter", "--target", str(self._first_process), "--mount", "--pid", "--", *command]

    def request(self, method: str, path: str, seconds: float = 120.0) -> int:
        """Send a request to the engine's API; returns the status. It is quicker than a docker command."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(f"{self.folder}/docker.sock")
            connection.sendall(f"{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
            return int(connection.makefile("rb").readline().split()[1])

    def link(self, name: str, target: Path) -> None:
        """Make `name` a symbolic link in the file system that the engine sees, whose /run is its own."""
        enter = ["nsenter", "--target", str(self._first_process), "--mount", "--"]
        subprocess.run(
            [*enter, "ln", "--symbolic", "--force", "--no-dereference", str(target), name],
            check=True,
        )

    def in_network(self, *command: str) -> list[str]:
        """Return a command that runs in the engine's network, where containers' published ports are."""
        return ["nsenter", "--target", str(self._first_process), "--net", "--", *command]

    def process_status(self, container: str) -> list[dict[str, str]]:
        """Return /proc/PID/status of each process in a container."""
        listed = self.docker("top", container, "-eo", "pid").split()[1:]
        read = subprocess.run(
            ["nsenter", "--target", str(self._first_process), "--mount", "--pid", "--", "cat"]
            + [f"/proc/{process}/status" for process in listed],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        statuses: list[dict[str, str]] = []
        for line in read.stdout.splitlines():
            name, _, value = line.partition(":")
            if name == "Name":
                statuses.append({})
            statuses[-1][name] = value.strip()
        return statuses

    def _docker(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        variables = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "DOCKER_CONFIG": str(self.folder / "config"),
            **(environment or {}),
        }
        # Debian's own client: another one that comes first on the PATH may not speak to this dockerd.
        return subprocess.run(
            ["/usr/bin/docker", *arguments],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    # processes

    def _make_namespaces(self) -> None:
        ready = self.folder / "ready"
        self._data.mkdir()
        # In memory, images are quick to unpack, and gone with the namespaces.
        tmpfs = f"mount -t tmpfs -o mode=0700,size=50% engine {self._data}"
        # A run directory of its own: for the socket of the guest agent, which this machine does not have, compose
        # makes a directory there.
        own_run = "mount -t tmpfs -o mode=0755 run /run"
        first = f"ip link set lo up && {tmpfs} && {own_run} && touch {ready} && exec sleep infinity"
        process = subprocess.Popen(
            [
                "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
                "docker-init", "--", "sh", "-c", first,
            ],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._running["namespaces"] = process
        self._until("namespaces", ready.exists)
        children = (
            Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
        )
        self._first_process = int(children[0])

    def _background(self, name: str, *command: str) -> None:
        namespaces = ("--mount", "--net", "--pid")
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["nsenter", "--target", str(self._first_process), *namespaces, "--", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._running[name] = process

    def _until(self, name: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            ended = [
                process.args for process in self._running.values() if process.poll() is not None
            ]
            if ended or time.monotonic() > deadline:
                log = self.folder / f"{name}.log"
                said = log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""
                raise EngineError(f"{name} did not start: {said}")
            time.sleep(0.1)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process that the tests started, and wait for it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)
