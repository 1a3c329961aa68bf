"""Make a base image from Debian's packages, for those who have none to name by digest.

The machine's own apt sources say where packages come from, and apt's keyring what is genuine. The same package
lists give the same bytes: times are those of the newest list, and nothing of the machine stays inside.
"""

from __future__ import annotations

import datetime
import email.utils
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image_errors import ImageError

SUITE: Final = "bookworm"
"""The Debian that has the Python of the locks, 3.11."""

PACKAGES: Final = ("ca-certificates", "libtcmalloc-minimal4", "passwd", "python3")
COMPILER_PACKAGES: Final = ("g++", "python3-dev")
"""What compiles kernels at run time: Triton's for GPUs include Python's headers, torch's for CPUs are C++."""

EXCLUDED_PATHS: Final = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)
TRACES: Final = (
    "etc/apt/sources.list",
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt",
)
"""What package installation leaves of this machine, relative to the image's root."""

APT_DIRECTORY: Final = Path("/etc/apt")
LISTS_DIRECTORY: Final = Path("/var/lib/apt/lists")
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FORMAT_VERSION: Final = 1
"""Raised when this module makes other bytes from the same inputs."""

_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class AptSource:
    """One suite of one archive, as this machine's apt has it."""

    address: str
    suite: str

    @property
    def line(self) -> str:
        """The source in the one-line form of sources.list(5)."""
        return f"deb [signed-by={KEYRING}] {self.address} {self.suite} main"

    @property
    def release_file(self) -> Path:
        """Where apt stores the signed list of this suite's packages."""
        place = re.sub(r"^\w+://", "", self.address.rstrip("/")).replace("/", "_")
        return LISTS_DIRECTORY / f"{place}_dists_{self.suite}_InRelease"


def debian_base(cache: Path, *, compiler: bool) -> Path:
    """Return an OCI layout with the base image, made unless `cache` has one from the same package lists.

    Raises:
        ImageError: this machine's apt has no Debian of the suite, or mmdebstrap failed.
    """
    sources = sorted(apt_sources(), key=lambda source: source.suite)
    packages = [*PACKAGES, *(COMPILER_PACKAGES if compiler else ())]
    inputs = [FORMAT_VERSION, packages, EXCLUDED_PATHS, TRACES, *map(_release_digest, sources)]
    layout = cache / f"{SUITE}-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:20]}"
    if not layout.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            created = newest_release(sources)
            _bootstrap(Path(scratch) / "base.tar", packages, sources, created)
            write_layout(Path(scratch) / "layout", Path(scratch) / "base.tar", created)
            (Path(scratch) / "layout").rename(layout)
    return layout


def layout_digest(layout: Path) -> str:
    """Return the digest of the one image in an OCI layout, as `sha256:HEX`."""
    (manifest,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    return str(manifest["digest"])


# what this machine's apt says


def apt_sources(directory: Path = APT_DIRECTORY, suite: str = SUITE) -> set[AptSource]:
    """Return the machine's sources for a Debian suite, its updates and its security updates.

    Raises:
        ImageError: there is none for the suite itself.
    """
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    files = [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))]
    found: set[AptSource] = set()
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            text = file.read_text("utf-8")
            entries = _deb822(text) if file.suffix == ".sources" else _one_line(text)
            found |= {AptSource(address, name) for address, name in entries if name in wanted}
    if suite not in {source.suite for source in found}:
        raise ImageError(
            f"expected an apt source of Debian's {suite} in {directory}, found none",
            hint=f"add one, or give a base image: --base NAME@sha256:DIGEST with Python of {suite}, 3.11",
        )
    return found


def _deb822(text: str) -> Iterator[tuple[str, str]]:
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {
            match[1].lower(): match[2].split()
            for match in re.finditer(r"(?m)^(\w[\w-]*):((?:.*)(?:\n[ \t].*)*)", paragraph)
        }
        if "deb" in fields.get("types", ()) and "main" in fields.get("components", ()):
            yield from ((address, name) for address in fields["uris"] for name in fields["suites"])


def _one_line(text: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"(?m)^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", text):
        if "main" in match[3].split():
            yield match[1], match[2]


def _release_digest(source: AptSource) -> str:
    return f"{source.suite} {hashlib.sha256(_release(source).encode()).hexdigest()}"


def newest_release(sources: Sequence[AptSource]) -> int:
    """Return the time of the newest package list, in seconds since 1970."""
    dates = [re.search(r"(?m)^Date: (.+)$", _release(source)) for source in sources]
    return max(
        int(email.utils.parsedate_to_datetime(date[1]).timestamp()) for date in dates if date
    )


def _release(source: AptSource) -> str:
    try:
        return source.release_file.read_text("utf-8")
    except OSError as error:
        raise ImageError(
            f"expected apt's list of {source.suite}, got {error}", hint="run apt-get update as root"
        ) from error


# the image


def _bootstrap(
    tar: Path, packages: Sequence[str], sources: Sequence[AptSource], created: int
) -> None:
    if shutil.which("mmdebstrap") is None:
        raise ImageError(
            "expected mmdebstrap, which makes the base image; it is not installed",
            hint="run scripts/container-packages, or give a base image: --base NAME@sha256:DIGEST",
        )
    removed = " ".join(f'"$1/{trace}"' for trace in TRACES)
    command = [
        "mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(packages)}",
        *(f"--dpkgopt={option}" for option in EXCLUDED_PATHS),
        f"--customize-hook=rm -rf {removed}", SUITE, str(tar), *(source.line for source in sources),
    ]  # fmt: skip
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(created)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"mmdebstrap failed: {' '.join(done.stderr.split())[-600:]}")


def write_layout(layout: Path, tar: Path, created: int) -> None:
    """Write an image of one layer as an OCI layout; the layer is the tar as it is, with its times."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layer = blob(tar.read_bytes(), _LAYER)
    config: Mapping[str, object] = {
        "architecture": "amd64",
        "os": "linux",
        "created": datetime.datetime.fromtimestamp(created, datetime.UTC)
        .isoformat()
        .replace("+00:00", "Z"),
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob(json.dumps(config).encode(), _CONFIG),
        "layers": [layer],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), _MANIFEST)]}
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_text(json.dumps(index))
