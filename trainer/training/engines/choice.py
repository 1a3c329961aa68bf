"""The list of the engines, and the choice of one for a run."""

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
        processes: number of processes that train together.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`.
    """
    if spec.model.load_in_4bit or spec.model.load_in_8bit:
        require_gpu("model.load_in_4bit and load_in_8bit", "bitsandbytes")
    if spec.train.engine is not Engine.AUTO:
        return next(engine for engine in ENGINES if engine.name == spec.train.engine)()
    # A spec that names an engine together with a feature that it does not allow was refused when it was parsed.
    # `auto` takes the next engine instead.
    return next(
        engine
        for engine in ENGINES
        if engine.is_available()
        and (engine.allows_processes or processes == 1)
        and (engine.allows_compilation or not spec.train.torch_compile)
        and (engine.allows_selection or not spec.lora.selects_modules)
    )()
