"""Loads a base model with transformers, and refuses one whose files are not exactly the architecture's tensors.

transformers draws missing weights at random and leaves unknown ones out, with a line in a log: training would go
on with another model than the one that was pinned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import ErrorCode, JobError
from trainer.model_files.model_check import ModelFiles, check_model_files
from trainer.model_files.tensor_listing import shorten
from trainer.spec import JobSpec
from trainer.training.out_of_memory import raise_if_out_of_memory


def check_model_dir(model_dir: Path, spec: JobSpec) -> ModelFiles:
    """Judges the files of the worker's model directory; they are those that the job spec pins.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    names = {
        path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*") if path.is_file()
    }
    return check_model_files(model_dir, names, spec)


def load_base_model(model_dir: Path, **options: Any) -> Any:
    """Returns a causal language model whose weights all come from the directory's files.

    Args:
        model_dir: directory with safetensors, JSON and text only: see `check_model_dir`.
        options: further arguments of transformers' `from_pretrained`.

    Raises:
        JobError: `MODEL_INVALID` or `OUT_OF_MEMORY`.
    """
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 -- after the choice of the engine

    try:
        # No network, no code from the model's author, no pickle. Other shapes are listed instead of raised, and
        # refused below with their names.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_dir,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise_if_out_of_memory(error)
        raise JobError(
            ErrorCode.MODEL_INVALID, f"the base model cannot be loaded ({type(error).__name__})"
        ) from error
    model, info = loaded
    _require_exact_tensors(info)
    return model


def require_all_weights(model_dir: Path) -> None:
    """Judges the weights' names and shapes as `load_base_model` does, without reading the weights.

    Raises:
        JobError: `MODEL_INVALID`.
    """
    load_base_model(model_dir, device_map="meta")


def _require_exact_tensors(info: Mapping[str, Collection[Any]]) -> None:
    """Refuses missing, unknown and differently shaped tensors.

    transformers has taken out tied weights, and those that the architecture declares as dispensable.
    """
    shapes = [
        f"{name} {list(found)} for {list(expected)}"
        for name, found, expected in info["mismatched_keys"]
    ]
    problems = {
        "missing": info["missing_keys"],
        "unknown": info["unexpected_keys"],
        "of other shapes": shapes,
    }
    if found := "; ".join(f"{kind}: {shorten(names)}" for kind, names in problems.items() if names):
        raise JobError(
            ErrorCode.MODEL_INVALID,
            "the base model's files do not have the tensors of its architecture",
            expected="each of them, in its shape, and no other",
            found=found,
            hint="pin all files of one and the same model",
        )
