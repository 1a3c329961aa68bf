"""What a worker does before there is a dataset: it imports the training stack and loads the base model.

Both are public, both take seconds, and the job waits for its dataset meanwhile. The run afterwards is bitwise the
run without this: no row has a part in it, and the generators are put to where loading leaves them. What fails here
is done again when the order is there, and is reported then, as sealed as any other failure.
"""

from __future__ import annotations

import gc
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from trainer.ipc.worker_messages import MAX_ORDER_BYTES, MODEL_READY, Preparation, TrainingOrder, parse_preparation
from trainer.training.stopwatch import Stopwatch
from trainer.worker.environment import take_environment

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.spec import JobSpec
    from trainer.training.engines.transformers_engine import Loader, Precision

_Made = TypeVar("_Made")

_log = logging.getLogger(__name__)


@dataclass
class PreloadedModel:
    """A base model with a fresh adapter that is there already; gives it away once.

    Attributes:
        name: of the engine that loaded it.
        loader: that engine.
        spec: what it was loaded for.
        precision: in what numbers.
        model: the PEFT model; None once it was given away.
        generators: states of torch's and Python's generators behind the loading.
    """

    name: str
    loader: Loader
    spec: JobSpec
    precision: Precision
    model: Any
    generators: tuple[tuple[Tensor, ...], object]

    def load(self, model_dir: Path, spec: JobSpec, precision: Precision) -> Any:
        """See `trainer.training.engines.transformers_engine.Loader`; loads anew where something else is wanted."""
        if self.model is None or (spec, precision) != (self.spec, self.precision):
            return self.loader.load(model_dir, spec, precision)
        from trainer.training.progress import restore_random  # noqa: PLC0415 -- part of the training stack

        torch_states, python_state = self.generators
        restore_random(torch_states)
        random.setstate(python_state)  # type: ignore[arg-type]  # what `getstate` gave
        model, self.model = self.model, None
        return model


class Preloader:
    """The training stack, and the base model where it could be loaded.

    Args:
        preparation: what the order will say of model and places.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._loaded: PreloadedModel | None = None
        self._watch = Stopwatch()

    def do(self, orders: IO[bytes]) -> None:
        """Import, wait for the word that the model is there, load it.

        Args:
            orders: where that word comes, and behind it the order.
        """
        take_environment(scratch_below(self._preparation.output_dir))
        loader = self._try(lambda: _import(self._preparation.spec))
        there = orders.readline(len(MODEL_READY)) == MODEL_READY
        if loader is not None and there:
            self._loaded = self._try(lambda: _load(loader, self._preparation))

    def _try(self, work: Callable[[], _Made]) -> _Made | None:
        try:
            with self._watch.part("ahead"):
                return work()
        except Exception:  # noqa: BLE001 -- whatever it is, the order will run into it again
            _log.exception("not prepared ahead")
            return None

    @property
    def seconds(self) -> float:
        """What it took, without the waiting."""
        return self._watch.read().get("ahead", 0.0)

    def loader(self, order: TrainingOrder, loader: Loader) -> Loader:
        """What gives the model of this order: what was loaded, or else `loader`."""
        ready = self._loaded
        same = (order.spec, order.model_dir) == (self._preparation.spec, self._preparation.model_dir)
        return loader if ready is None or not same or loader.name != ready.name else ready


def prepare(orders: IO[bytes]) -> Preloader:
    """Read a preparation and carry it out.

    Raises:
        UsageError: it is none.
    """
    ahead = Preloader(parse_preparation(orders.readline(MAX_ORDER_BYTES + 1)))
    ahead.do(orders)
    return ahead


def scratch_below(output_dir: Path) -> Path:
    """Where caches and temporary files of a run go; gone when it has ended."""
    return output_dir / ".scratch"


def remove_scratch(output_dir: Path) -> None:
    """Leave nothing of it."""
    shutil.rmtree(scratch_below(output_dir), ignore_errors=True)


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without looking for garbage: three thousand modules make much to look through, and hardly any of it.

    What was made is kept out of later collections, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _import(spec: JobSpec) -> Loader:
    with uncollected():
        from trainer.training.engines.transformers_engine import choose_engine  # noqa: PLC0415 -- seconds; the engine comes first

        loader = choose_engine(spec)
        import transformers.modeling_utils  # noqa: PLC0415 -- lazy otherwise: loading would wait for it

        import trainer.training.run  # noqa: PLC0415 -- brings transformers and PEFT

        del transformers, trainer
    return loader


def _load(loader: Loader, preparation: Preparation) -> PreloadedModel:
    from trainer.training.engines.transformers_engine import check_model_dir, choose_precision  # noqa: PLC0415 -- part of the stack
    from trainer.training.progress import random_state  # noqa: PLC0415
    from trainer.training.run import seed  # noqa: PLC0415

    spec = preparation.spec
    check_model_dir(preparation.model_dir)
    precision, _ = choose_precision(spec)
    seed(spec.train.seed)
    model = loader.load(preparation.model_dir, spec, precision)
    generators = random_state(precision.device), random.getstate()
    return PreloadedModel(loader.name, loader, spec, precision, model, generators)
