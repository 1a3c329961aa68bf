"""Prepares a worker before there is a dataset: imports the training stack and loads the base model.

Both need nothing private and take seconds in which the job waits for its dataset anyway. The result of the run is
bitwise the same with and without preloading: no row is involved, and the random generators are restored to the
state that loading leaves. An error here is logged and dropped; the run meets it again after the order has come,
and reports it then, sealed like every other failure.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.ipc.worker_messages import Preparation, TrainingOrder
from trainer.training.stopwatch import Stopwatch
from trainer.worker.environment import replace_environment
from trainer.worker.model_integrity import VerifiedModel, verify_model

if TYPE_CHECKING:
    from trainer.training.engines.base import Loader
    from trainer.worker.preloaded_model import PreloadedModel

_log = logging.getLogger(__name__)


class Preloader:
    """Imports the training stack, and loads the base model where that is possible.

    Args:
        preparation: the model and the directories that the order will name.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._loader: Loader | None = None
        self._model: PreloadedModel | None = None
        self._verified: VerifiedModel | None = None
        self._watch = Stopwatch()

    def import_stack(self) -> None:
        """Imports the training stack."""
        replace_environment(scratch_dir(self._preparation.output_dir))
        with self._attempt(), garbage_collection_paused():
            from trainer.training.engines.choice import choose_engine  # noqa: PLC0415 -- slow

            # In this order: unsloth patches transformers and must be imported before it.
            loader = choose_engine(self._preparation.spec)
            import transformers.modeling_utils  # noqa: PLC0415 -- lazy otherwise: loading would wait for it

            import trainer.training.run  # noqa: PLC0415 -- brings transformers and PEFT

            del transformers, trainer
            self._loader = loader

    def load_model(self) -> None:
        """Loads the base model, which is on disk now."""
        if self._loader is None:
            return
        with self._attempt():
            from trainer.worker.preloaded_model import load_preloaded  # noqa: PLC0415 -- imports the training stack

            model_dir, spec = self._preparation.model_dir, self._preparation.spec
            self._verified = verify_model(model_dir, spec.model.model_file_sha256)
            self._model = load_preloaded(self._loader, model_dir, spec)

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Measures the time of the block, and ends the block at an error."""
        try:
            with self._watch.part("preload"):
                yield
        except Exception:  # noqa: BLE001 -- the run will meet the same error, and report it
            _log.exception("preloading failed")

    @property
    def seconds(self) -> float:
        """Time that importing and loading took, in seconds, without the wait in between."""
        return self._watch.read().get("preload", 0.0)

    def loader_for(self, order: TrainingOrder, loader: Loader) -> Loader:
        """Returns what loads this order's model: the preloaded model where it fits, otherwise `loader`."""
        model = self._model
        return (
            loader
            if model is None or not self._is_for(order) or loader.name != model.name
            else model
        )

    def verified_for(self, order: TrainingOrder) -> VerifiedModel | None:
        """Returns this order's model as it was verified before it was preloaded; None if it was not."""
        return self._verified if self._is_for(order) else None

    def _is_for(self, order: TrainingOrder) -> bool:
        return (order.spec, order.model_dir) == (
            self._preparation.spec,
            self._preparation.model_dir,
        )


def scratch_dir(output_dir: Path) -> Path:
    """Returns the directory for a run's caches and temporary files; removed when the run has ended."""
    return output_dir / ".scratch"


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Switches garbage collection off for imports, and excludes what was imported from later collections.

    Importing three thousand modules triggers many collections that find next to nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
