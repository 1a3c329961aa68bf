"""The list of the engines, and the one that a job spec names."""

from __future__ import annotations

from typing import Final

from trainer.spec import JobSpec
from trainer.training.engines.base import Loader, require_gpu
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.engines.unsloth_engine import UnslothLoader

ENGINES: Final[tuple[type[Loader], ...]] = (TransformersLoader, UnslothLoader)


def choose_engine(spec: JobSpec) -> Loader:
    """Returns the engine that a spec names.

    Call it before anything imports transformers: some engines must be imported first.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`.
    """
    if spec.model.load_in_4bit or spec.model.load_in_8bit:
        require_gpu("model.load_in_4bit and load_in_8bit", "bitsandbytes")
    return next(engine for engine in ENGINES if engine.name == spec.train.engine)()
