"""The steps of scripts/image, in order."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from image_base import debian_base, layout_digest
from image_builder import Build, Builder, commit_time, packed_bytes, unpacked_bytes
from image_contents import bill_of_materials
from image_errors import ImageError
from image_wheels import locked_wheels, wheel_digests

ROOT: Final = Path(__file__).parents[1]
DEBIAN: Final = "debian"


class Progress:
    """Says on standard error what is being done, and remembers how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, description: str) -> Iterator[None]:
        """Announce a step; its time in seconds is noted under `name`."""
        sys.stderr.write(f"image: {description}\n")
        sys.stderr.flush()
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


@contextmanager
def scratch_directory(*, in_memory: bool) -> Iterator[Path]:
    """A directory for the layers of a build, removed afterwards.

    In memory it is a tmpfs. scripts/image gives this process a mount namespace of its own: no mount outlasts it.
    """
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        if not in_memory:
            yield Path(name)
            return
        mount = ["mount", "-t", "tmpfs", "-o", "mode=0700,size=100%", "image", name]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode:
            raise ImageError(f"--in-memory: {mounted.stderr.strip()}", hint="leave --in-memory out")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def build_image(
    variant: str, base: str, *, cache: Path, output: Path, compiler: bool, in_memory: bool
) -> dict[str, Any]:
    """Build one variant; returns what `--json` prints.

    Raises:
        ImageError: a step failed.
    """
    progress = Progress()
    output.mkdir(parents=True, exist_ok=True)
    log = output / "build.log"
    log.write_bytes(b"")
    created = commit_time()
    with scratch_directory(in_memory=in_memory) as scratch, Builder(scratch, log) as builder:
        if base == DEBIAN:
            with progress.step("base", "base: Debian's packages, unless the cache has them"):
                layout = debian_base(cache / "base", compiler=compiler or variant == "cuda")
                base = builder.import_base(layout, layout_digest(layout))
        with progress.step(
            "wheels", f"wheels: what requirements/image-{variant}.txt locks, by hash"
        ):
            wheels = locked_wheels(ROOT / "requirements", variant, cache / f"wheels-{variant}")
        with progress.step("build", f"build: {base}; see {log}"):
            image = builder.build(Build(variant, base, created, wheels))
        with progress.step("export", f"export: {output / 'image'}"):
            digest = builder.export(image, output / "image")
        with (
            progress.step("sbom", f"contents: {output / 'sbom.cdx.json'}"),
            builder.mounted(image) as root,
        ):
            size = unpacked_bytes(root)
            contents = bill_of_materials(
                root,
                image_digest=digest,
                created=created,
                wheel_digests=wheel_digests(wheels),
                variant=variant,
            )
            (output / "sbom.cdx.json").write_text(contents, "utf-8")
    built = {
        "variant": variant,
        "digest": digest,
        "base": base,
        "unpacked_bytes": size,
        "packed_bytes": packed_bytes(output / "image"),
        "image": str(output / "image"),
        "sbom": str(output / "sbom.cdx.json"),
        "seconds": progress.seconds,
    }
    (output / "image.json").write_text(json.dumps(built, indent=1) + "\n", "utf-8")
    return built
