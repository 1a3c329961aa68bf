"""Count the bytes that a large upload and a large pull take over links that break.

    python -m benchmarks.broken_links [--mib 1024] [--cuts 50] [--every 100000] [--json]

A front serves HTTPS as in a job; a relay on loopback resets its connections, at `--cuts` places that are spread
evenly over the file, or each after `--every` bytes in both directions. Counted is what each side has sent, also
what was on its way when its connection was reset, with TLS and HTTP. No times: pauses are a tenth of theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import JobError
from trainer.ipc.front_messages import (
    OpenUpload,
    Ready,
    ResultReady,
    Shutdown,
    StatusUpdate,
    UploadReady,
    supervisor_channel,
)
from trainer.models import Phase, Status
from trainer.provider.transport.http_carrier import JobClient
from trainer.simulator.faulting_link import FaultingLink

MIB = 1 << 20


@dataclass(frozen=True)
class Transfer:
    """What one transfer took."""

    direction: str
    link: str
    mebibytes: int
    connections: int
    cuts: int
    sent_over_size: float


class ServingFront:
    """A front process with a supervisor that only notes its messages."""

    def __init__(self, spool: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        settings = json.dumps({"host": "127.0.0.1", "port": 0, "max_upload_bytes": 1 << 40})
        command = [
            sys.executable, "-m", "trainer.front", "--spool", str(spool), "--settings-json", settings,
            "--control-fd", str(theirs.fileno()),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.channel = supervisor_channel(ours)
        ready = self.channel.receive(timeout=60)
        assert isinstance(ready, Ready)
        self.ready, self.uploaded = ready, threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(JobError, OSError):
            while (message := self.channel.receive()) is not None:
                if isinstance(message, UploadReady):
                    self.uploaded.set()

    def close(self) -> None:
        """Ends the process."""
        self.channel.send(Shutdown())
        self.process.wait(20)
        self._thread.join()
        self.channel.close()


@contextmanager
def serving(spool: Path) -> Iterator[ServingFront]:
    spool.mkdir()
    front = ServingFront(spool)
    try:
        yield front
    finally:
        front.close()


def even_cuts(size: int, cuts: int) -> Callable[[], int | None]:
    """Connections that break `cuts` times, evenly over the file."""
    left = iter([size // (cuts + 1)] * cuts)
    return lambda: next(left, None)


def upload(front: ServingFront, client: JobClient, source: Path, folder: Path) -> None:
    front.channel.send(OpenUpload(accept=True))
    front.channel.send(StatusUpdate(status=Status(phase=Phase.AWAITING_DATASET)))
    client.upload(source, state=folder / "upload.json")
    assert front.uploaded.wait(60)


def pull(front: ServingFront, client: JobClient, source: Path, folder: Path) -> None:
    served = source.parent / "spool" / "result.tar.age"
    os.link(source, served)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = source.stat().st_size
    front.channel.send(ResultReady(size=size, sha256=digest, acknowledgement_sha256=("0" * 64,)))
    front.channel.send(StatusUpdate(status=Status(phase=Phase.AWAITING_PULL, result_bytes=size)))
    while client.status().phase is not Phase.AWAITING_PULL:
        pass
    assert client.download_result(folder / "result", limit=size) == digest


def measure(direction: str, link: str, mib: int, next_cut: Callable[[], int | None]) -> Transfer:
    """Carries a file of random bytes over a link."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder, source = Path(name), Path(name) / "source"
        with source.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        with (
            serving(folder / "spool") as front,
            FaultingLink(front.ready.port, next_cut=next_cut) as relay,
            JobClient(
                f"https://127.0.0.1:{relay.port}",
                pinned_spki_sha256=front.ready.tls_spki_sha256,
                sleep=lambda seconds: time.sleep(
                    seconds / 10
                ),  # the front needs some, to see a connection end
            ) as client,
        ):
            (upload if direction == "upload" else pull)(front, client, source, folder)
        sent = relay.sent_up if direction == "upload" else relay.sent_down
        return Transfer(
            direction, link, mib, relay.connections, relay.cuts, round(sent / (mib * MIB), 4)
        )


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--every", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    links: dict[str, Callable[[], Callable[[], int | None]]] = {
        "whole": lambda: lambda: None,
        f"{options.cuts} cuts": lambda: even_cuts(options.mib * MIB, options.cuts),
        f"a cut every {options.every} bytes": lambda: lambda: options.every,
    }
    found = [
        measure(direction, link, options.mib, make())
        for link, make in links.items()
        for direction in ("upload", "pull")
    ]
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    for each in found:
        print(
            f"{each.direction:6}  {each.link:24}  {each.connections:6} connections  {each.cuts:6} cuts"
            f"  sent / size {each.sent_over_size:.4f}"
        )


if __name__ == "__main__":
    main()
