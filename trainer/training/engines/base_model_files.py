"""Checks the files of a base model before a library opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from trainer.data.examples.model_config import read_config
from trainer.errors import ErrorCode, JobError

_EXECUTABLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so")
"""Pickles and code: opening such a file can run what its author wrote, in the process that sees the dataset."""


def check_model_dir(model_dir: Path) -> dict[str, Any]:
    """Refuses a model directory with pickles or code, and one without safetensors; returns its config.json.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    # The spec pins the files' hashes, but a provider may pin what a stranger published. Pickles and code would run
    # in the process that sees the dataset.
    names = [path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*") if path.is_file()]
    executable = sorted(name for name in names if name.endswith(_EXECUTABLE_SUFFIXES))
    if executable or not any(name.endswith(".safetensors") for name in names):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's files",
            expected="safetensors weights, and neither pickles nor code",
            found=executable[0] if executable else "no .safetensors file",
        )
    return read_config(model_dir)
