"""The engines that there are, and which of them a run takes."""

from __future__ import annotations

from typing import Final

from trainer.spec import Engine, JobSpec
from trainer.training.engines.base import Loader, require_gpu
from trainer.training.engines.transformers_engine import TransformersLoader
from trainer.training.engines.unsloth_engine import UnslothLoader

ENGINES: Final[tuple[type[Loader], ...]] = (UnslothLoader, TransformersLoader)
"""In the order in which `train.engine: auto` tries them; the last one runs everywhere."""


def choose_engine(spec: JobSpec, *, processes: int = 1) -> Loader:
    """Returns the engine that a spec names, or with `auto` the first that suits it.

    Call it before anything imports transformers: some engines must be imported first.

    Args:
        spec: the job spec.
        processes: how many processes train together.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`.
    """
    if spec.model.load_in_4bit or spec.model.load_in_8bit:
        require_gpu("model.load_in_4bit and load_in_8bit", "bitsandbytes")
    if spec.train.engine is Engine.AUTO:
        return next(engine for engine in ENGINES if _suits(engine, spec, processes))()
    return next(engine for engine in ENGINES if engine.name == spec.train.engine)()


def _suits(engine: type[Loader], spec: JobSpec, processes: int) -> bool:
    if not engine.is_available():
        return False
    return (processes == 1 or engine.allows_processes) and (
        not spec.train.torch_compile or engine.allows_compilation
    )
