"""Build an image with buildah.

Without network, and with one time for everything: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from image_errors import ImageError

ROOT: Final = Path(__file__).parents[1]
LOCAL_BASE: Final = "localhost/debian-base"
LOG_LINES: Final = 25
"""How many lines of buildah's output an error shows."""


@dataclass(frozen=True)
class Build:
    """What an image is built from.

    Attributes:
        base: the base image, NAME@sha256:DIGEST.
        created: the time of everything in the image, in seconds since 1970.
        wheels: the folder with the locked wheels.
    """

    variant: str
    base: str
    created: int
    wheels: Path


class Builder:
    """Buildah with a store of its own, which is removed when the context ends, and a log for its output.

    Raises:
        ImageError: buildah is not installed, or this user cannot use it.
    """

    def __init__(self, scratch: Path, log: Path) -> None:
        if shutil.which("buildah") is None:
            raise ImageError(
                "expected buildah, which builds the image; it is not installed",
                hint="run scripts/container-packages; docs/deploy.md says how to build without it",
            )
        if os.geteuid() != 0:
            raise ImageError(
                "expected to run as root, which owns the files of the image", hint="use sudo"
            )
        self._store = (
            "--root", str(scratch / "store"), "--runroot", str(scratch / "run"), "--storage-driver", "overlay",
            "--storage-opt", "overlay.skip_mount_home=true",
        )  # fmt: skip
        self._environment = {**os.environ, "TMPDIR": str(scratch)}
        self._log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Unmounts what an interrupted build left mounted, so that the store can be removed.
        self._run("rm", "--all", check=False)

    def import_base(self, layout: Path, digest: str) -> str:
        """Load a base image from an OCI layout; returns its name with digest."""
        # By its last name alone: buildah makes an image name of the path, and refuses a part such as `.cache`.
        image = self._run(
            "pull", "--quiet", f"oci:{layout.name}", directory=layout.parent
        ).stdout.strip()
        self._output("tag", image, f"{LOCAL_BASE}:latest")
        return f"{LOCAL_BASE}@{digest}"

    def build(self, build: Build) -> str:
        """Build the image from the Dockerfile, without cached layers; returns its id.

        Raises:
            ImageError: a step failed.
        """
        with tempfile.TemporaryDirectory() as scratch:
            image_id = Path(scratch) / "id"
            self._logged(
                "build", "--layers=false", "--format=oci", "--identity-label=false", "--network=none",
                f"--timestamp={build.created}", f"--tls-verify={'false' if _on_loopback(build.base) else 'true'}",
                f"--build-context=wheels={build.wheels}", f"--build-arg=VARIANT={build.variant}",
                f"--build-arg=BASE_IMAGE={build.base}", f"--build-arg=SOURCE_DATE_EPOCH={build.created}",
                f"--iidfile={image_id}", str(ROOT),
            )  # fmt: skip
            return image_id.read_text("utf-8").strip().removeprefix("sha256:")

    def export(self, image: str, layout: Path) -> str:
        """Write the image as an OCI layout with compressed layers; returns its digest, as `sha256:HEX`."""
        shutil.rmtree(layout, ignore_errors=True)
        self._logged("push", "--quiet", image, f"oci:{layout}")
        (manifest,) = json.loads((layout / "index.json").read_bytes())["manifests"]
        return str(manifest["digest"])

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The root directory of the image, to read."""
        container = self._output("from", "--pull-never", image).strip()
        try:
            yield Path(self._output("mount", container).strip())
        finally:
            self._output("rm", container)

    # processes

    def _output(self, *arguments: str) -> str:
        return self._run(*arguments).stdout

    def _logged(self, *arguments: str) -> None:
        with self._log.open("ab") as log:
            done = self._run(*arguments, check=False, log=log)
        if done.returncode:
            last = "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:])
            raise ImageError(f"buildah {arguments[0]} failed; the end of {self._log}:\n{last}")

    def _run(
        self,
        *arguments: str,
        check: bool = True,
        log: IO[bytes] | None = None,
        directory: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        out = log or subprocess.PIPE
        done = subprocess.run(
            ["buildah", *self._store, *arguments],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True, check=False,
            cwd=directory,
        )  # fmt: skip
        if check and done.returncode:
            raise ImageError(
                f"buildah {arguments[0]} failed: {' '.join(done.stderr.split())[-500:]}"
            )
        return done


def _on_loopback(image: str) -> bool:
    return image.startswith(("localhost:", "localhost/", "127.0.0.1:"))


def unpacked_bytes(root: Path) -> int:
    """Return the size of all files below a directory, in bytes; files with several names count once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            status = (Path(folder) / name).lstat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def packed_bytes(layout: Path) -> int:
    """Return how many bytes of an OCI layout a registry sends."""
    return sum(file.stat().st_size for file in (layout / "blobs").rglob("*") if file.is_file())


def commit_time(
    environment: Mapping[str, str] = os.environ,
    command: Sequence[str] = ("git", "log", "-1", "--format=%ct"),
) -> int:
    """Return SOURCE_DATE_EPOCH, or the time of the checkout's commit.

    Raises:
        ImageError: this is no checkout.
    """
    if given := environment.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(
            "expected a git checkout, whose commit's time is that of the image's files",
            hint="set SOURCE_DATE_EPOCH, in seconds since 1970",
        )
    return int(done.stdout)
