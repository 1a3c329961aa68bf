"""What a training run gets, and the files that it leaves for the process around it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.spec import JobSpec

CHECKPOINTS_DIR: Final = "checkpoints"
"""Directory below `output_dir`: holds the files of each checkpoint, in a directory named by its step."""

CHECKPOINT_FILES: Final = ("metrics.jsonl", "state.json", "state.safetensors")
"""The files of a checkpoint, sorted by name."""


@dataclass(frozen=True)
class RunInputs:
    """One training run.

    Attributes:
        spec: the complete job spec.
        model_dir: base model; holds the files listed in the spec and no others.
        output_dir: private directory; gets `adapter/`, `report/` and `checkpoints/`.
        resume_dir: files of a checkpoint of this run, already authenticated; None starts from the first step.
    """

    spec: JobSpec
    model_dir: Path
    output_dir: Path
    resume_dir: Path | None = None
