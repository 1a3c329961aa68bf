"""Replaces the worker's environment variables before the training stack is imported.

The operator chooses the variables that the container starts with, and some variables make a library load code,
contact a host or write to another directory. So the worker keeps only the inherited variables that
`trainer.sandbox.child_environment` lists, and sets all others itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainer.sandbox.child_environment import INHERITED_VARIABLES

QUIET: Final[Mapping[str, str]] = {
    # no requests to the Hugging Face hub: the order's directories contain every file that the worker needs
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
    # unsloth: no fallback to its CPU engine, no shared cache of generated code
    "UNSLOTH_DISABLE_CPU_FALLBACK": "1",
    "UNSLOTH_MEGA_CACHE": "0",
    # and no compilation beside Triton's kernels: what it would compile for a GPU has been tested by nobody here
    "UNSLOTH_COMPILE_DISABLE": "1",
    # transformers would fetch attention and MoE kernels from a hub
    "USE_HUB_KERNELS": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    # the tokenizer uses all cores; nothing forks after it has made its threads
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONDONTWRITEBYTECODE": "1",
    # OpenMP threads spin this many times at a barrier before they sleep. Where the host has taken a virtual CPU
    # away, the other threads spin in vain, and a longer spin makes a step many times slower.
    "GOMP_SPINCOUNT": "10000",
    # Number of compiled CPU kernels that oneDNN caches, about 0.5 MiB each. It compiles one for each shape, and
    # almost every pass has another number of tokens: 256 covers a few passes, and most of the default of 1024
    # would be shapes that do not recur.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    # cuBLAS needs a workspace of fixed size where torch demands deterministic matrix products
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def worker_environment(inherited: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Returns the variables that the worker runs with.

    Args:
        inherited: the variables that the process started with.
        scratch: private directory of the run, for caches, home directories and temporary files.
    """
    allowed = {name: value for name, value in inherited.items() if name in INHERITED_VARIABLES}
    directories = {
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
    return {**allowed, **QUIET, **{name: str(path) for name, path in directories.items()}}


def replace_environment(scratch: Path) -> None:
    """Replaces the variables of this process and creates the directories that libraries expect to exist."""
    environment = worker_environment(os.environ, scratch)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = (
        None  # it may have been looked up before, and unsloth drops TORCHINDUCTOR_CACHE_DIR for it
    )
    for directory in (scratch, scratch / "tmp", scratch / "hf", scratch / "cache"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
