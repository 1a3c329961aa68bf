"""The inputs of a training run, and the names of the files that it leaves. Imports no torch."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.model_files.start_adapter import StartAdapter
from trainer.spec import JobSpec

CHECKPOINTS_DIR: Final = "checkpoints"
"""Directory below `output_dir`: holds the files of each checkpoint, in a directory named by its step."""

CHECKPOINT_FILES: Final = ("metrics.jsonl", "state.json", "state.safetensors")
"""The files of a checkpoint, sorted by name."""


@dataclass(frozen=True)
class RunInputs:
    """The inputs of one training run.

    Attributes:
        spec: the complete job spec.
        model_dir: directory of the base model, with the files that the spec lists and no others.
        output_dir: private directory; receives `adapter/`, `report/` and `checkpoints/`.
        resume_dir: directory with a checkpoint of this run, already authenticated; None for a fresh run.
        start_adapter: files of the adapter that training starts from, not judged yet; None for a fresh one.
        split_key: 32 secret bytes that decide which rows a job with a section `privacy` holds out. A resumed run
            needs those of the run before.
    """

    spec: JobSpec
    model_dir: Path
    output_dir: Path
    resume_dir: Path | None = None
    start_adapter: StartAdapter | None = None
    split_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
