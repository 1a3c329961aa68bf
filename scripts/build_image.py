"""Build the job's container image for x86-64, and list what is in it.

    scripts/image cpu  --base debian                    a base made from Debian's packages
    scripts/image cuda --base NAME@sha256:DIGEST        a base that you chose

It downloads the locked wheels by hash (once; pip's configuration says from where), builds without network, and
writes into the output folder: image/ (an OCI layout), sbom.cdx.json (CycloneDX: every package and its licences),
image.json (what --json prints) and build.log. Two builds from one commit and one base have the same digest. It
runs on Debian or Ubuntu, as root, with what scripts/container-packages installs.

Exit code: 0 built, 1 a step failed, 2 wrong usage. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

sys.path[:0] = [str(Path(__file__).parent)]

from image_errors import ImageError  # noqa: E402 -- after the change of sys.path

ROOT: Final = Path(__file__).parents[1]
DEBIAN: Final = "debian"
BY_DIGEST: Final = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
MEBIBYTE: Final = 1 << 20


def base_image(text: str) -> str:
    """Check the value of `--base`.

    Raises:
        argparse.ArgumentTypeError: it is neither `debian` nor a name with digest.
    """
    if text != DEBIAN and not BY_DIGEST.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"expected {DEBIAN} or NAME@sha256:DIGEST, got {text!r}; a tag would let someone else decide"
        )
    return text


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    description, _, details = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="scripts/image", description=description, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument(
        "variant", choices=("cpu", "cuda"), help="which lock: requirements/image-VARIANT.txt"
    )
    made.add_argument(
        "--base", required=True, type=base_image, metavar="BASE",
        help="the base image by digest, or `debian` to make one from Debian's packages with Python 3.11",
    )  # fmt: skip
    made.add_argument(
        "--compiler", action="store_true",
        help="with --base debian: g++ and Python's headers, for train.torch_compile; always so for cuda",
    )  # fmt: skip
    made.add_argument("--output", type=Path, metavar="DIR", help="default: dist/image-VARIANT")
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confidential-trainer"
    )
    made.add_argument(
        "--cache", type=Path, metavar="DIR", default=cache,
        help="where wheels and bases stay for the next build (default: ~/.cache/confidential-trainer)",
    )  # fmt: skip
    made.add_argument(
        "--in-memory", action="store_true",
        help="keep the layers in memory while building: 4 GB for cpu, 20 for cuda; quicker where disks are slow",
    )  # fmt: skip
    made.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    options = parser().parse_args(arguments)
    if options.compiler and options.base != DEBIAN:
        parser().error("--compiler needs --base debian: a base that you name is taken as it is")
    from image_steps import build_image  # noqa: PLC0415 -- `--help` needs no environment

    output = (options.output or ROOT / "dist" / f"image-{options.variant}").resolve()
    try:
        built = build_image(
            options.variant, options.base, cache=options.cache.resolve(), output=output,
            compiler=options.compiler, in_memory=options.in_memory,
        )  # fmt: skip
    except (ImageError, OSError) as error:
        sys.stderr.write(f"image: {error}\n")
        if hint := getattr(error, "hint", ""):
            sys.stderr.write(f"hint: {hint}\n")
        return 1
    print(json.dumps(built) if options.json else summary(built))
    return 0


def summary(built: dict[str, Any]) -> str:
    """What a person reads of the object that `--json` prints."""
    unpacked, packed = (built[name] / MEBIBYTE for name in ("unpacked_bytes", "packed_bytes"))
    return "\n".join(
        (
            f"digest    {built['digest']}",
            f"base      {built['base']}",
            f"size      {unpacked:,.0f} MiB, {packed:,.0f} MiB packed",
            f"image     {built['image']}",
            f"contents  {built['sbom']}",
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
