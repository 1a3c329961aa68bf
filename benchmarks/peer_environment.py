"""Virtual environments for peers that ours has no use for: one for each version of TRL, below `.cache/peers`.

Everything under TRL is what this environment has, version by version, so that a comparison is one of trainers.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SAME: Final = ("accelerate", "datasets", "numpy", "peft", "pydantic", "PyYAML", "rfc8785", "tokenizers",
        "transformers")  # fmt: skip
"""Packages that are pinned to the versions of this environment; torch is installed first, by itself."""


def peer_interpreter(trl: str) -> Path:
    """Returns the interpreter of the environment with this version of TRL; makes it if it is missing."""
    folder = ROOT / ".cache" / "peers" / f"trl-{trl}"
    complete = folder / "complete"
    if not complete.exists():
        print(f"making {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # Asked for together with the rest, torch may come as a build for CUDA, with gigabytes of libraries.
        for packages in (
            [f"torch=={version('torch').partition('+')[0]}"],
            [f"trl=={trl}", *map(_pin, SAME)],
        ):
            command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(command, check=True)
        complete.touch()
    return folder / "bin" / "python"


def _pin(package: str) -> str:
    return f"{package}=={version(package)}"
