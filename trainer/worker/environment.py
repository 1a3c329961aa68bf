"""The worker's environment variables: made anew before the training stack is imported.

Whoever started the VM chose the variables that this process was born with; of those only the listed ones stay.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainer.sandbox.child_environment import INHERITED_VARIABLES

QUIET: Final[Mapping[str, str]] = {
    # no look-ups: everything the worker may read is in the order's directories
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    # no telemetry
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_DISABLED": "true",
    "WANDB_MODE": "disabled",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # unsloth: no CPU engine of its own, no shared cache of generated code
    "UNSLOTH_DISABLE_CPU_FALLBACK": "1",
    "UNSLOTH_MEGA_CACHE": "0",
    # transformers would fetch attention and MoE kernels from a hub
    "USE_HUB_KERNELS": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
    # OpenMP threads that wait for one another sleep soon: where the host gives a virtual CPU to someone else,
    # spinning at every barrier makes a step many times slower
    "GOMP_SPINCOUNT": "10000",
    # compiled CPU kernels, half a MiB each: one for each shape, and each pass has a number of tokens of its own.
    # So many are those of a few passes; the default, 1024, is mostly shapes that do not come again
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    # lets CUDA matrix products be deterministic where asked to
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def worker_environment(born_with: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """The variables the worker runs with.

    Args:
        born_with: the process's own variables.
        scratch: private directory; every cache, home and temporary file goes there.
    """
    kept = {name: value for name, value in born_with.items() if name in INHERITED_VARIABLES}
    places = {
        "HOME": scratch,
        "TMPDIR": scratch / "tmp",
        "HF_HOME": scratch / "hf",
        "HF_DATASETS_CACHE": scratch / "hf" / "datasets",
        "TORCH_HOME": scratch / "torch",
        "TORCH_EXTENSIONS_DIR": scratch / "torch-extensions",
        "CUDA_CACHE_PATH": scratch / "cuda",
        "MPLCONFIGDIR": scratch / "matplotlib",
        "NUMBA_CACHE_DIR": scratch / "numba",
        "XDG_CACHE_HOME": scratch / "cache",
        "TORCHINDUCTOR_CACHE_DIR": scratch / "inductor",
        "TRITON_CACHE_DIR": scratch / "triton",
        "TRITON_HOME": scratch / "triton-home",
        "UNSLOTH_COMPILE_LOCATION": scratch / "unsloth",
    }
    return {**kept, **QUIET, **{name: str(path) for name, path in places.items()}}


def take_environment(scratch: Path) -> None:
    """Replace this process's variables, and make the directories they name."""
    environment = worker_environment(os.environ, scratch)
    os.environ.clear()
    os.environ.update(environment)
    for directory in (scratch, scratch / "tmp", scratch / "hf", scratch / "cache"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
