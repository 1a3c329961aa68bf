"""A base model that was loaded before its run. Imports torch: only for use after the engine was chosen."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.spec import JobSpec
from trainer.training.engines.base import Loader, Precision, choose_precision
from trainer.training.engines.base_model_loading import check_model_dir
from trainer.training.progress import random_state, restore_random
from trainer.training.run import seed

GeneratorStates = tuple[tuple[Tensor, ...], tuple[Any, ...]]
"""States of torch's generators and of Python's."""


class PreloadedModel(Loader):
    """An engine that has loaded its model already, and gives it away once.

    Args:
        loader: the engine that loaded it.
        spec: the job spec that it was loaded for.
        precision: the precision that it was loaded in.
        model: the PEFT model, with a fresh adapter.
        generators: states of the random generators after loading.
    """

    def __init__(
        self,
        loader: Loader,
        spec: JobSpec,
        precision: Precision,
        model: Any,
        generators: GeneratorStates,
    ) -> None:
        self.name = loader.name
        self.allows_fused = loader.allows_fused
        self.spec = spec
        self.precision = precision
        self.model = model
        self._loader = loader
        self._generators = generators

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """Gives the model away and sets the random generators as loading left them.

        Loads again where the model was given away already, or was loaded for another spec or precision.

        Raises:
            JobError: as the engine that loads again.
        """
        if self.model is None or (spec, precision) != (self.spec, self.precision):
            return self._loader.load(model_dir, spec, precision)
        torch_states, python_state = self._generators
        restore_random(torch_states)
        random.setstate(python_state)
        model, self.model = self.model, None
        return model


def load_preloaded(loader: Loader, model_dir: Path, spec: JobSpec) -> PreloadedModel:
    """Loads a base model exactly as its run will: with the same seed and the same precision.

    Raises:
        JobError: as the engine.
    """
    check_model_dir(model_dir, spec)
    precision, _ = choose_precision(spec)
    seed(spec.train.seed)
    model = loader.load(model_dir, spec, precision)
    return PreloadedModel(
        loader, spec, precision, model, (random_state(precision.device), random.getstate())
    )
