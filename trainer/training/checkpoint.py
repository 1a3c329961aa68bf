"""A run's state as files, and back: `state.json`, `state.safetensors` and the metrics so far. No pickle.

The supervisor seals the files, and hands them back only once they were authenticated. They are read as if they
had not been: every name, kind and shape must be what this run would have written.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import ErrorCode, JobError
from trainer.models import MAX_STATUS_STEPS, Strict
from trainer.training.early_stopping import BestEvaluation
from trainer.training.events import CheckpointWritten, EventHandler, MetricsMeasured
from trainer.training.interruption import Interrupts
from trainer.training.progress import TrainState
from trainer.training.report.samples import Sample
from trainer.training.run_inputs import CHECKPOINT_FILES, CHECKPOINTS_DIR
from trainer.training.tree import flatten_tree, unflatten_tree

METRICS, STATE, TENSORS = CHECKPOINT_FILES
_log: Final = logging.getLogger(__name__)  # goes to stderr, which is the private log
_TAKEN_SECONDS: Final = 30.0
"""How long a checkpoint waits for the one before it to be sealed."""

_LOOK_SECONDS: Final = 0.005

_Step = Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)]
_MAX_SUMS: Final = 16  # of pairs; preference training keeps eight
_Totals = tuple[float, _Step, _Step]


class _BestDocument(Strict):
    loss: float
    step: _Step
    stale: _Step
    adapter: bool


class _StateDocument(Strict):
    """`state.json`. Tensors are named `adapter/I`, `best/I`, `random/I` and `optimizer/PATH`."""

    version: Literal[1]
    step: Annotated[int, Field(ge=1, le=MAX_STATUS_STEPS)]
    parameters: tuple[str, ...]
    optimizer: JsonValue
    generators: Annotated[int, Field(ge=1, le=2)]
    totals: _Totals
    recent: _Totals
    since: float
    budget: Annotated[int, Field(ge=1)]
    best: _BestDocument | None
    last: tuple[_Step, float] | None
    before: float | None
    train_seconds: float
    eval_seconds: float
    pairs: Annotated[tuple[float, ...], Field(max_length=_MAX_SUMS)]
    warnings: tuple[str, ...]
    samples: tuple[dict[str, str], ...]
    draw: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    resumed_at: tuple[_Step, ...]


@dataclass(frozen=True)
class SavedState:
    """What is kept beside the state of the loop.

    Attributes:
        metrics: everything measured so far.
        samples: the prompts, with what the model answered before training.
        resumed_at: the steps behind which the run was gone on with.
        draw: secret seed of the rows and canaries that the privacy audit drew, in hex; None where it draws none.
    """

    metrics: Sequence[MetricsMeasured]
    samples: Sequence[Sample]
    resumed_at: tuple[int, ...]
    draw: str | None = None


@dataclass(frozen=True, kw_only=True)
class ResumedState(SavedState):
    """What a checkpoint holds; `resumed_at` ends with its own step."""

    state: TrainState


class CheckpointWriter:
    """Writes checkpoints for the supervisor to seal.

    Args:
        output_dir: of the order.
        parameters: names of the trained parameters, in the model's order.
        kept: read whenever a state is saved.
        report: gets `CheckpointWritten`.
        interrupts: held back while a checkpoint is written.
    """

    def __init__(
        self,
        output_dir: Path,
        parameters: Sequence[str],
        kept: SavedState,
        *,
        report: EventHandler,
        interrupts: Interrupts,
    ) -> None:
        self._folder = output_dir / CHECKPOINTS_DIR
        self._parameters = tuple(parameters)
        self._kept = kept
        self._report = report
        self._interrupts = interrupts
        self._saved = kept.resumed_at[-1] if kept.resumed_at else 0

    def save(self, state: TrainState) -> None:
        """Write a state; nothing happens for a step that is saved already, and a full disk ends no training."""
        if state.step == self._saved or not self._wait_taken():
            return
        with self._interrupts.deferred():
            target = self._folder / str(state.step)
            partial = self._folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir(mode=0o700, parents=True)
                write_state(partial, self._parameters, state, self._kept)
                partial.rename(target)
            except OSError:
                _log.exception("a checkpoint could not be written")
                shutil.rmtree(partial, ignore_errors=True)
                return
            self._saved = state.step
            self._report(CheckpointWritten(step=state.step))

    def _wait_taken(self) -> bool:
        """Memory holds one checkpoint at a time: wait for the sealing of the last, but not for ever."""
        last = self._folder / str(self._saved)
        deadline = time.monotonic() + _TAKEN_SECONDS
        while last.exists():
            if time.monotonic() > deadline:
                _log.warning("a checkpoint was left out: the one before it is not sealed yet")
                return False
            time.sleep(_LOOK_SECONDS)
        return True


def write_state(folder: Path, parameters: Sequence[str], state: TrainState, kept: SavedState) -> None:
    """Write the files of a checkpoint into a directory.

    Raises:
        OSError: the workspace is full.
        TypeError: the optimizer has a state of a kind that is not known here.
    """
    best = state.best
    tensors = {
        **_named("adapter", state.adapter),
        **_named("random", state.random),
        **_named("best", best.adapter if best else ()),
    }
    document = _StateDocument(
        version=1,
        step=state.step,
        parameters=tuple(parameters),
        optimizer=flatten_tree(state.optimizer, "optimizer", tensors),
        generators=len(state.random),
        totals=state.totals,
        recent=state.recent,
        since=state.since,
        budget=state.budget,
        best=_BestDocument(loss=best.loss, step=best.step, stale=best.stale, adapter=bool(best.adapter))
        if best
        else None,
        last=state.last,
        before=state.before,
        train_seconds=state.train_seconds,
        eval_seconds=state.eval_seconds,
        pairs=state.method_state,
        warnings=state.warnings,
        samples=tuple(sample.as_dict() for sample in kept.samples),
        draw=kept.draw,
        resumed_at=kept.resumed_at,
    )
    # Copied: one storage that two tensors share could not be written, and the file is read on a CPU first.
    owned = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        save_file(owned, folder / TENSORS)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / STATE).write_text(document.model_dump_json(), encoding="utf-8")
    lines = (json.dumps({"step": item.step, **item.values}) + "\n" for item in kept.metrics)
    (folder / METRICS).write_text("".join(lines), encoding="utf-8")


def read_state(folder: Path, trained: Mapping[str, Tensor]) -> ResumedState:
    """Read the files of a checkpoint.

    Args:
        folder: holds them.
        trained: the trained parameters by name, in the model's order: what is read must fit them.

    Raises:
        JobError: `CHECKPOINT_INVALID`: it is not of a run like this one.
    """
    with _fits_this_run():
        document = _StateDocument.model_validate_json((folder / STATE).read_bytes())
        tensors = load_file(folder / TENSORS)
        metrics = tuple(_metrics(line) for line in (folder / METRICS).read_bytes().splitlines())
        state = _state(document, tensors, trained)
        samples = tuple(Sample(**sample) for sample in document.samples)
    resumed_at = (*document.resumed_at, document.step)
    return ResumedState(metrics, samples, resumed_at, document.draw, state=state)


def read_probe_seed(folder: Path) -> str:
    """`SavedState.draw` of a checkpoint: it is needed before there is a model.

    Raises:
        JobError: `CHECKPOINT_INVALID`: among others, nothing was drawn. Drawing anew would go on with other rows.
    """
    with _fits_this_run():
        draw = _StateDocument.model_validate_json((folder / STATE).read_bytes()).draw
        if draw is None:
            raise ValueError("nothing was drawn")
        return draw


@contextmanager
def _fits_this_run() -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValidationError, ValueError, TypeError, KeyError) as error:
        _log.exception("a checkpoint does not fit")
        raise JobError(
            ErrorCode.CHECKPOINT_INVALID,
            f"the checkpoint does not fit this run: {type(error).__name__}",
            hint="remove the checkpoints from the job's ciphertext directory to begin again",
        ) from None


def _state(document: _StateDocument, tensors: dict[str, Tensor], trained: Mapping[str, Tensor]) -> TrainState:
    if document.parameters != tuple(trained):
        raise ValueError("other parameters")
    best = document.best
    kept = _fitting("best", tensors, trained) if best and best.adapter else ()
    return TrainState(
        step=document.step,
        adapter=_fitting("adapter", tensors, trained),
        optimizer=_optimizer(document.optimizer, tensors),
        random=tuple(tensors[f"random/{number}"] for number in range(document.generators)),
        totals=document.totals,
        budget=document.budget,
        best=BestEvaluation(best.loss, best.step, best.stale, kept) if best else None,
        recent=document.recent,
        since=document.since,
        last=document.last,
        before=document.before,
        train_seconds=document.train_seconds,
        eval_seconds=document.eval_seconds,
        method_state=document.pairs,
        warnings=document.warnings,
    )


def _optimizer(value: JsonValue, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found = unflatten_tree(value, tensors)
    if not isinstance(found, dict):
        raise TypeError("no state of an optimizer")
    return found


def _named(kind: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{number}": tensor for number, tensor in enumerate(tensors)}


def _fitting(kind: str, tensors: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The tensors of a kind, each of its parameter's shape and numbers."""
    found = tuple(tensors[f"{kind}/{number}"] for number in range(len(trained)))
    for tensor, parameter in zip(found, trained.values(), strict=True):
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise ValueError("another shape")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError("not finite")
    return found


def _metrics(line: bytes) -> MetricsMeasured:
    match json.loads(line):
        case {"step": int(step), **values}:
            return MetricsMeasured.model_validate({"step": step, "values": values})
        case _:
            raise ValueError("not a line of metrics")
