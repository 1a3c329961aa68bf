"""Open a sealed result with another implementation of age: the age command, or npm's age-encryption."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from demo_processes import DemoError, Processes

INTEROP: Final = Path("tests/sealing/interop")


class NoOtherAgeError(Exception):
    """This machine has no other implementation of age; the message says what was looked for."""


def list_with_other_age(
    run: Processes, sealed: Path, key: Path, cache: Path
) -> tuple[str, set[str]]:
    """Decrypt with another implementation and list the files of the tar.

    Args:
        run: runs commands.
        sealed: the sealed result, as the job left it.
        key: identity file.
        cache: directory for npm's packages.

    Returns:
        Name of the implementation, and names of the files.

    Raises:
        NoOtherAgeError: none is installed that supports this type of key.
        DemoError: one is installed and cannot open the result.
    """
    identity = next(
        line for line in key.read_text("utf-8").splitlines() if line.startswith("AGE-SECRET-KEY-")
    )
    hybrid = identity.startswith("AGE-SECRET-KEY-PQ-")
    if shutil.which("age") and (not hybrid or _age_version() >= (1, 3)):
        run.say(f"$ age -d -i {key} {sealed} | tar t")
        return "age", _list_files(
            _run_decryption(["age", "--decrypt", "-i", str(key), str(sealed)])
        )
    if not (shutil.which("node") and shutil.which("npm")):
        raise NoOtherAgeError(
            "neither an age that knows this kind of key nor node and npm are here"
        )
    _install(cache)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.tar"
        run.say(f"$ node {cache}/age.mjs decrypt … {sealed} … | tar t")
        _run_decryption(
            ["node", str(cache / "age.mjs"), "decrypt", identity, str(sealed), str(target)]
        )
        return "npm age-encryption", _list_files(target.read_bytes())


def _age_version() -> tuple[int, int]:
    text = subprocess.run(
        ["age", "--version"], capture_output=True, text=True, check=False, timeout=10
    ).stdout
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _install(cache: Path) -> None:
    """Install the packages of package-lock.json, which pins them by hash."""
    cache.mkdir(parents=True, exist_ok=True)
    for path in INTEROP.iterdir():
        shutil.copyfile(path, cache / path.name)
    if (cache / "node_modules" / "age-encryption").is_dir():
        return
    try:
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=cache, check=True, capture_output=True, timeout=90,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        shutil.rmtree(cache / "node_modules", ignore_errors=True)
        raise NoOtherAgeError("npm could not fetch age-encryption") from None


def _run_decryption(command: list[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except subprocess.SubprocessError as error:
        raise DemoError(
            f"{command[0]} cannot open the sealed result ({type(error).__name__})"
        ) from None
    return done.stdout


def _list_files(tar: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {member.name for member in archive if member.isfile()}
