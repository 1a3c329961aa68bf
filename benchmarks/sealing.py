"""Measure speed and memory of sealing, compared with the command-line tools that users would take instead.

All tools encrypt and decrypt the same file on a tmpfs, in turn, in one run; only ratios within one run are
meaningful. `trainer` is measured twice: as a function call, and as a new process including the start of Python.
Processor time is what tool and system spent on all CPUs: where others use the machine, it says more than time.

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
    """A tool: functions of (source, target) that encrypt and decrypt, and what each round took."""

    name: str
    seal: Callable[[Path, Path], object]
    open: Callable[[Path, Path], object]
    sealing: list[tuple[float, float]] = field(default_factory=list)
    opening: list[tuple[float, float]] = field(default_factory=list)


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def copy_by_command(source: Path, target: Path) -> None:
    run("cp", source, target)


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
    yield Tool("cp (no cipher), as a process", copy_by_command, copy_by_command)


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)
        if command := shutil.which("gpgconf"):  # gpg starts an agent for its home; end that one
            run(command, "--homedir", Path(name) / "gnupg", "--kill", "all")


def seconds(
    action: Callable[[Path, Path], object], source: Path, target: Path
) -> tuple[float, float]:
    """Return the time that an action takes, and its processor time, that of its processes among it."""
    start, before = time.perf_counter(), os.times()
    action(source, target)
    spent = sum(os.times()[:4]) - sum(before[:4])
    return time.perf_counter() - start, spent


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


def medians(tool: Tool) -> dict[str, float]:
    """Return the medians of a tool's rounds, in seconds."""
    both = {"seal": tool.sealing, "open": tool.opening}
    return {
        f"{action}{kind}": statistics.median(each[at] for each in rounds)
        for at, kind in enumerate(("", "_cpu"))
        for action, rounds in both.items()
    }


def report(
    everyone: list[Tool], mib: int, memory: dict[str, dict[str, float]]
) -> dict[str, object]:
    ours = medians(everyone[0])
    rows = {}
    for tool in everyone:
        found = medians(tool)
        over_ours = {name: round(found[name] / ours[name], 2) for name in ours}
        rows[tool.name] = {
            "seal_mb_per_s": round(mib * MIB / 1e6 / found["seal"]),
            "open_mb_per_s": round(mib * MIB / 1e6 / found["open"]),
            **{f"{name}_over_ours": ratio for name, ratio in over_ours.items()},
        }
    return {"mib": mib, "cpus": os.cpu_count(), "tools": rows, "peak_rss_mib": memory}


def print_table(result: dict[str, object]) -> None:
    tools_ = result["tools"]
    assert isinstance(tools_, dict)
    print(f"{result['mib']} MiB, {result['cpus']} CPUs; time as a multiple of the first line's\n")
    kinds = ("seal", "open", "seal_cpu", "open_cpu")
    titles = "".join(f"{kind.replace('_', ' ') + ' x':>12}" for kind in kinds)
    print(f"{'':40}{'seal MB/s':>10}{'open MB/s':>10}{titles}")
    for name, row in tools_.items():
        speeds = f"{row['seal_mb_per_s']:10}{row['open_mb_per_s']:10}"
        print(
            f"{name:40}{speeds}", *(f"{row[f'{kind}_over_ours']:12.2f}" for kind in kinds), sep=""
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
