"""Measure speed and memory of sealing, compared with the command-line tools that users would take instead.

All tools encrypt and decrypt the same file on a tmpfs, in turn, in one run; only ratios within one run are
meaningful. `trainer` is measured twice: as a function call, and as a new process including the start of Python.

    python benchmarks/sealing.py [--mib 512] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainer.sealing.age import Identity, decrypt_file, encrypt_file, generate_identity

MIB = 1 << 20

PROCESS = """
import sys
from pathlib import Path
from trainer.sealing.age import decrypt_file, encrypt_file, parse_identity_file
action, key, source, target = sys.argv[1:]
identities = parse_identity_file(Path(key).read_text())
if action == "seal":
    encrypt_file(Path(source), Path(target), [identities[0].recipient()])
else:
    decrypt_file(Path(source), Path(target), identities)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


@dataclass
class Tool:
    """A tool: functions of (source, target) that encrypt and decrypt, and the seconds of each round."""

    name: str
    seal: Callable[[Path, Path], object]
    open: Callable[[Path, Path], object]
    sealing: list[float] = field(default_factory=list)
    opening: list[float] = field(default_factory=list)


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def called(name: str, identity: Identity) -> Tool:
    return Tool(
        name,
        lambda source, target: encrypt_file(source, target, [identity.recipient()]),
        lambda source, target: decrypt_file(source, target, [identity]),
    )


def as_process(name: str, key: Path) -> Tool:
    return Tool(
        name,
        lambda source, target: run(sys.executable, "-c", PROCESS, "seal", key, source, target),
        lambda source, target: run(sys.executable, "-c", PROCESS, "open", key, source, target),
    )


def age_like(name: str, command: str, key: Path, recipient: str) -> Tool:
    return Tool(
        name,
        lambda source, target: run(command, "-r", recipient, "-o", target, source),
        lambda source, target: run(command, "-d", "-i", key, "-o", target, source),
    )


def gpg(command: str, secret: Path, home: Path) -> Tool:
    base = (command, "--homedir", home, "--batch", "--yes", "--quiet", "--no-symkey-cache")
    unlock = ("--pinentry-mode", "loopback", "--passphrase-file", secret)
    seal = ("--cipher-algo", "AES256", "--compress-algo", "none", "--symmetric")
    return Tool(
        "gpg AES-256",
        lambda source, target: run(*base, *unlock, *seal, "-o", target, source),
        lambda source, target: run(*base, *unlock, "-o", target, "--decrypt", source),
    )


def openssl(command: str, secret: Path) -> Tool:
    base = (command, "enc", "-aes-256-ctr", "-pbkdf2", "-pass", f"file:{secret}")
    return Tool(
        "openssl aes-256-ctr (unauthenticated)",
        lambda source, target: run(*base, "-in", source, "-out", target),
        lambda source, target: run(*base, "-d", "-in", source, "-out", target),
    )


def tools(folder: Path) -> Iterator[Tool]:
    """Yield the tools that are installed, this project's first."""
    hybrid, x25519 = generate_identity(), generate_identity(hybrid=False)
    keys = {"hybrid": hybrid, "x25519": x25519}
    for name, identity in keys.items():
        (folder / name).write_text(f"{identity}\n")
    (folder / "secret").write_text("correct horse battery staple\n")
    (folder / "gnupg").mkdir(mode=0o700)
    yield called("trainer, hybrid", hybrid)
    yield called("trainer, X25519", x25519)
    yield as_process("trainer, hybrid, as a process", folder / "hybrid")
    for name in ("age", "rage"):
        if command := shutil.which(name):
            yield age_like(f"{name} X25519", command, folder / "x25519", str(x25519.recipient()))
    if command := shutil.which("gpg"):
        yield gpg(command, folder / "secret", folder / "gnupg")
    if command := shutil.which("openssl"):
        yield openssl(command, folder / "secret")
    yield Tool("copy (no cipher)", shutil.copyfile, shutil.copyfile)


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)
        if command := shutil.which("gpgconf"):  # gpg starts an agent for its home; end that one
            run(command, "--homedir", Path(name) / "gnupg", "--kill", "all")


def seconds(action: Callable[[Path, Path], object], source: Path, target: Path) -> float:
    start = time.perf_counter()
    action(source, target)
    return time.perf_counter() - start


def measure(folder: Path, mib: int, rounds: int) -> list[Tool]:
    """Run all tools in turn; the first round of each is a warm-up and not counted."""
    plain, sealed, opened = folder / "plain", folder / "sealed", folder / "opened"
    write_random(plain, mib)
    everyone = list(tools(folder))
    for turn in range(rounds + 1):
        for tool in everyone:
            spent = (seconds(tool.seal, plain, sealed), seconds(tool.open, sealed, opened))
            if opened.stat().st_size != plain.stat().st_size:
                sys.exit(f"{tool.name} lost data")
            sealed.unlink()
            opened.unlink()
            if turn:
                tool.sealing.append(spent[0])
                tool.opening.append(spent[1])
    return everyone


def write_random(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


def peak_mib(folder: Path, mib: int) -> dict[str, float]:
    """Return the peak resident memory of a process that encrypts and decrypts a file of this size."""
    plain, sealed, opened = folder / "plain", folder / "sealed", folder / "opened"
    write_random(plain, mib)
    tool = as_process("", folder / "hybrid")
    return {
        "seal": round(int(str(tool.seal(plain, sealed))) / 1024, 1),
        "open": round(int(str(tool.open(sealed, opened))) / 1024, 1),
    }


def report(
    everyone: list[Tool], mib: int, memory: dict[str, dict[str, float]]
) -> dict[str, object]:
    best = everyone[0]
    rows = {}
    for tool in everyone:
        sealing, opening = statistics.median(tool.sealing), statistics.median(tool.opening)
        rows[tool.name] = {
            "seal_mb_per_s": round(mib * MIB / 1e6 / sealing),
            "open_mb_per_s": round(mib * MIB / 1e6 / opening),
            "seal_time_over_ours": round(sealing / statistics.median(best.sealing), 2),
            "open_time_over_ours": round(opening / statistics.median(best.opening), 2),
        }
    return {"mib": mib, "cpus": os.cpu_count(), "tools": rows, "peak_rss_mib": memory}


def print_table(result: dict[str, object]) -> None:
    tools_ = result["tools"]
    assert isinstance(tools_, dict)
    print(f"{result['mib']} MiB, {result['cpus']} CPUs; time as a multiple of the first line's\n")
    print(f"{'':40}{'seal MB/s':>10}{'open MB/s':>10}{'seal x':>9}{'open x':>9}")
    for name, row in tools_.items():
        speeds = f"{row['seal_mb_per_s']:10}{row['open_mb_per_s']:10}"
        print(
            f"{name:40}{speeds}{row['seal_time_over_ours']:9.2f}{row['open_time_over_ours']:9.2f}"
        )
    print("\npeak resident memory, MiB:", json.dumps(result["peak_rss_mib"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512, help="size of the file (default: 512)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each tool that count (default: 5)"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("/dev/shm"), help="where to work (default: tmpfs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    with workspace(arguments.directory) as folder:
        everyone = measure(folder, arguments.mib, arguments.rounds)
        memory = {f"{mib} MiB": peak_mib(folder, mib) for mib in (1, arguments.mib)}
    result = report(everyone, arguments.mib, memory)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
