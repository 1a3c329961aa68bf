"""Download what an image's locks name, by hash. The folder is kept: a second build downloads nothing."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from image_errors import ImageError

LOCKS: Final = ("image-{variant}.txt", "uv.txt")
PYTHON: Final = "311"
# glibc 2.36 of Debian bookworm runs what was built for any version before it.
PLATFORMS: Final = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)),
    *(f"manylinux{year}_x86_64" for year in (2014, 2010, 1)),
    "linux_x86_64",
)


def locked_wheels(requirements: Path, variant: str, folder: Path) -> Path:
    """Fill `folder` with exactly the wheels that the image's locks name; returns it.

    Wheels come from where this machine's pip is configured to look. They need not be for this machine's Python.

    Raises:
        ImageError: pip does not find them, or finds others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    locks = [requirements / name.format(variant=variant) for name in LOCKS]
    entries = dict(entry for lock in locks for entry in locked_hashes(lock))
    if _present(folder, entries) != set(entries):
        for lock in locks:
            _download(lock, folder)
    lacking = set(entries) - _present(folder, entries)
    if lacking:
        raise ImageError(f"expected pip to download {', '.join(sorted(lacking))}, which it did not")
    return folder


def locked_hashes(lock: Path) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the name of each package of a lock, and the SHA-256 of the files that it admits."""
    for entry in re.finditer(r"(?m)^([a-z0-9-]+)==.*(?:\n    .*)*", lock.read_text("utf-8")):
        yield entry[1], frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry[0]))


def wheel_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each wheel by the name of its package."""
    digests = {}
    for wheel in sorted(folder.glob("*.whl")):
        with wheel.open("rb") as content:
            digests[package_name(wheel)] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests


def package_name(wheel: Path) -> str:
    """Return the name of a wheel's package, as locks write it."""
    return re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()


def _present(folder: Path, entries: dict[str, frozenset[str]]) -> set[str]:
    """Names of the locked packages that are in the folder; other files are removed."""
    present = set()
    for wheel in sorted(folder.glob("*")):
        name = package_name(wheel)
        with wheel.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest in entries.get(name, frozenset()):
            present.add(name)
        else:
            wheel.unlink()
    return present


def _download(lock: Path, folder: Path) -> None:
    target = ["--implementation", "cp", "--python-version", PYTHON]
    for abi in (f"cp{PYTHON}", "abi3", "none"):
        target += ["--abi", abi]
    for platform in PLATFORMS:
        target += ["--platform", platform]
    command: Sequence[str] = (
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps",
        "--require-hashes", "--only-binary", ":all:", *target, "--requirement", str(lock), "--dest", str(folder),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _download_error(lock, done.stderr)


def _download_error(lock: Path, messages: str) -> ImageError:
    """What pip says at length, in the words of this project; addresses of an index are left out."""
    if "DO NOT MATCH THE HASHES" in messages:
        names = ", ".join(re.findall(r"(?m)^\s+([A-Za-z0-9._-]+==\S+) ", messages)) or "a package"
        return ImageError(
            f"expected the file of {names} that {lock.name} locks, got one with another hash",
            hint='docs/deploy.md, "If a hash differs", says when that is an attack and when another build',
        )
    lines = [
        line for line in messages.splitlines() if line.startswith("ERROR")
    ] or messages.splitlines()
    said = re.sub(r"\w+://\S+", "(address)", " ".join(" ".join(lines).split()))
    return ImageError(
        f"pip could not download what {lock.name} locks: {said[-500:]}",
        hint="`pip config list` shows where pip looks; docs/deploy.md says more",
    )
