"""The compose of a newer Debian, unpacked beside the system, whose own is a generation older.

dstack's guest runs the version of trixie, 2.26.1.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

SUITE: Final = "trixie"
PACKAGES: Final = ("docker-compose", "docker-buildx")
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def unpack_plugins(cache: Path, archive: str) -> Path:
    """Return a directory with docker's plugins, downloaded unless `cache` has them.

    Args:
        cache: stays between runs.
        archive: address of a Debian archive, as this machine's apt has it.

    Raises:
        subprocess.CalledProcessError: apt could not download them.
    """
    key = hashlib.sha256(repr((SUITE, PACKAGES)).encode()).hexdigest()[:12]
    plugins = cache / f"plugins-{SUITE}-{key}"
    if plugins.is_dir():
        return plugins
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch_name:
        scratch = Path(scratch_name)
        for packed in _download(scratch, archive):
            subprocess.run(["dpkg-deb", "-x", packed, scratch / "unpacked"], check=True)
        found = scratch / "unpacked" / "usr" / "libexec" / "docker" / "cli-plugins"
        shutil.move(found, plugins)
    return plugins


def _download(scratch: Path, archive: str) -> list[Path]:
    """Download the packages with apt's own checks, but with lists and sources that the system does not see."""
    for folder in ("sources", "lists/partial", "cache/archives/partial", "packages"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "sources" / "newer.list").write_text(
        f"deb [signed-by={KEYRING}] {archive} {SUITE} main\n"
    )
    options = [
        f"Dir::Etc::sourcelist={scratch}/none",
        f"Dir::Etc::sourceparts={scratch}/sources",
        f"Dir::State::lists={scratch}/lists",
        f"Dir::Cache={scratch}/cache",
        f"Dir::State::status={scratch}/status",
        # As another user apt could not write here.
        "APT::Sandbox::User=root",
    ]
    (scratch / "status").touch()
    command = ["apt-get", "--quiet=2", *(part for option in options for part in ("-o", option))]
    subprocess.run([*command, "update"], check=True, capture_output=True)
    subprocess.run(
        [*command, "download", *PACKAGES], check=True, capture_output=True, cwd=scratch / "packages"
    )
    return sorted((scratch / "packages").glob("*.deb"))
