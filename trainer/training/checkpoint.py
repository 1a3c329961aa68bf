"""Writes a run's state to files and reads it back: `state.json`, `state.safetensors` and the metrics so far.

The supervisor authenticates the files before it returns them. This module validates them nevertheless: names,
types and shapes must be those of this run, and no format can execute code, as pickle (`torch.save`) could.
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
from typing import Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import ErrorCode, JobError
from trainer.training.checkpoint_document import BestDocument, StateDocument
from trainer.training.early_stopping import BestEvaluation
from trainer.training.events import CheckpointWritten, EventHandler, MetricsMeasured
from trainer.training.interruption import Interrupts
from trainer.training.progress import TrainState
from trainer.training.report.samples import Sample
from trainer.training.run_inputs import CHECKPOINT_FILES, CHECKPOINTS_DIR
from trainer.training.task_summary import TaskFigures
from trainer.training.tree import flatten_tree, unflatten_tree

METRICS, STATE, TENSORS = CHECKPOINT_FILES
_log: Final = logging.getLogger(__name__)  # goes to stderr, which is the private log
_SEALING_TIMEOUT_SECONDS: Final = 30.0
"""Time that a checkpoint waits until the supervisor has sealed and removed the previous one."""

_POLL_SECONDS: Final = 0.005  # the supervisor says that a checkpoint is sealed by removing it


@dataclass(frozen=True)
class SavedState:
    """The part of a checkpoint that does not come from the training loop.

    Attributes:
        metrics: all metrics so far.
        samples: the prompts, with the model's answers before training.
        resumed_at: the steps after which the run was resumed, in order.
        draw: secret seed with which the privacy audit chose its rows and canaries, in hex; None without an audit.
        task: the figures of task metrics before the first step; None without `evaluation.metrics`.
    """

    metrics: Sequence[MetricsMeasured]
    samples: Sequence[Sample]
    resumed_at: tuple[int, ...]
    draw: str | None = None
    task: TaskFigures | None = None


@dataclass(frozen=True, kw_only=True)
class ResumedState(SavedState):
    """The content of a checkpoint; the last entry of `resumed_at` is the checkpoint's own step."""

    state: TrainState


class CheckpointWriter:
    """Writes checkpoints for the supervisor to seal.

    Args:
        output_dir: output directory of the training order.
        parameters: names of the trained parameters, in the model's order.
        saved: the part of the state outside the loop; read at each save, so its metrics may grow meanwhile.
        report: receives `CheckpointWritten`.
        interrupts: defers signals while a checkpoint is written.
    """

    def __init__(
        self,
        output_dir: Path,
        parameters: Sequence[str],
        saved: SavedState,
        *,
        report: EventHandler,
        interrupts: Interrupts,
    ) -> None:
        self._folder = output_dir / CHECKPOINTS_DIR
        self._parameters = tuple(parameters)
        self._saved = saved
        self._report = report
        self._interrupts = interrupts
        self._last_step = saved.resumed_at[-1] if saved.resumed_at else 0

    def save(self, state: TrainState, is_last: bool) -> None:
        """Writes a checkpoint, unless this step has one already or the previous one is still unsealed.

        An error of the file system is logged and does not end the run: training can finish without a checkpoint.

        Args:
            state: the state after a step.
            is_last: whether no other follows: this one waits until the previous one is sealed. Others do not: the
                supervisor decides when it seals.
        """
        # Waiting may be interrupted. Writing may not, so that an event follows every complete checkpoint.
        if state.step == self._last_step or not self._is_sealed(
            _SEALING_TIMEOUT_SECONDS if is_last else 0
        ):
            return
        with self._interrupts.deferred():
            target = self._folder / str(state.step)
            partial = self._folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir(mode=0o700, parents=True)
                write_state(partial, self._parameters, state, self._saved)
                # Atomic: a directory with a step's number is complete even if the worker is killed meanwhile.
                partial.rename(target)
            except OSError:
                _log.exception("a checkpoint could not be written")
                shutil.rmtree(partial, ignore_errors=True)
                return
            # Reported last: the supervisor starts to seal the directory when it receives the event.
            self._last_step = state.step
            self._report(CheckpointWritten(step=state.step))

    def _is_sealed(self, seconds: float) -> bool:
        """Returns whether the supervisor removes the previous checkpoint in time: the tmpfs has room for one."""
        deadline = time.monotonic() + seconds
        while (self._folder / str(self._last_step)).exists():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True


def write_state(
    folder: Path, parameters: Sequence[str], state: TrainState, saved: SavedState
) -> None:
    """Writes the files of a checkpoint into a directory.

    Raises:
        OSError: the workspace is full.
        TypeError: the optimizer's state contains a value that `flatten_tree` does not support.
    """
    best = state.best
    # The table of tensors that `StateDocument` describes; `flatten_tree` below adds those of the optimizer.
    groups = {
        "adapter": state.adapter,
        "random": state.random,
        "best": best.adapter if best else (),
    }
    tensors = {
        f"{kind}/{number}": item
        for kind, group in groups.items()
        for number, item in enumerate(group)
    }
    document = StateDocument(
        version=1,
        step=state.step,
        parameters=tuple(parameters),
        optimizer=flatten_tree(state.optimizer, "optimizer", tensors),
        generators=len(state.random),
        totals=state.totals,
        recent=state.recent,
        since=state.since,
        budget=state.budget,
        best=BestDocument(
            loss=best.loss, step=best.step, stale=best.stale, adapter=bool(best.adapter)
        )
        if best
        else None,
        last=state.last,
        before=state.before,
        train_seconds=state.train_seconds,
        eval_seconds=state.eval_seconds,
        pairs=state.method_state,
        warnings=state.warnings,
        samples=tuple(sample.as_dict() for sample in saved.samples),
        draw=saved.draw,
        task=saved.task,
        resumed_at=saved.resumed_at,
    )
    # Copies on the CPU: safetensors refuses tensors that share a storage, and the reader loads to the CPU.
    owned = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    try:
        save_file(owned, folder / TENSORS)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / STATE).write_text(document.model_dump_json(), encoding="utf-8")
    lines = (json.dumps({"step": item.step, **item.values}) + "\n" for item in saved.metrics)
    (folder / METRICS).write_text("".join(lines), encoding="utf-8")


def read_state(folder: Path, trained: Mapping[str, Tensor]) -> ResumedState:
    """Reads the files of a checkpoint.

    Args:
        folder: directory with the three files.
        trained: the trained parameters by name, in the model's order; the checkpoint must have the same ones.

    Raises:
        JobError: `CHECKPOINT_INVALID`: a file is malformed, or belongs to a run with other parameters.
    """
    with _invalid_if_raising():
        document = StateDocument.model_validate_json((folder / STATE).read_bytes())
        tensors = load_file(folder / TENSORS)
        metrics = []
        for line in (folder / METRICS).read_bytes().splitlines():
            values = json.loads(line)
            if not isinstance(values, dict):
                raise TypeError("a line of metrics is no object")
            metrics.append(MetricsMeasured(step=values.pop("step"), values=values))
        state = _parse_train_state(document, tensors, trained)
        samples = tuple(Sample(**sample) for sample in document.samples)
    resumed_at = (*document.resumed_at, document.step)
    return ResumedState(
        tuple(metrics), samples, resumed_at, document.draw, document.task, state=state
    )


def read_probe_seed(folder: Path) -> str:
    """Returns `SavedState.draw` of a checkpoint, which is needed before the model: it decides the training rows.

    Raises:
        JobError: `CHECKPOINT_INVALID`; also without a seed: a new one would change the canaries in mid-run.
    """
    with _invalid_if_raising():
        draw = StateDocument.model_validate_json((folder / STATE).read_bytes()).draw
        if draw is None:
            raise ValueError("nothing was drawn")
        return draw


@contextmanager
def _invalid_if_raising() -> Iterator[None]:
    """Turns errors of reading a checkpoint into `CHECKPOINT_INVALID`; their texts go to the private log only."""
    try:
        yield
    # KeyError: a tensor is missing. Everything else is what the parsers raise for malformed input.
    except (OSError, SafetensorError, ValidationError, ValueError, TypeError, KeyError) as error:
        _log.exception("a checkpoint does not fit")
        raise JobError(
            ErrorCode.CHECKPOINT_INVALID,
            f"the checkpoint does not fit this run: {type(error).__name__}",
            hint="remove the checkpoints from the job's ciphertext directory to begin again",
        ) from None


def _parse_train_state(
    document: StateDocument, tensors: dict[str, Tensor], trained: Mapping[str, Tensor]
) -> TrainState:
    """Returns the state that a document and its tensors describe, for a run with these parameters.

    Raises:
        KeyError, TypeError, ValueError: it does not fit this run.
    """
    # Tensors are numbered, so the order of the names matters: two matrices of one shape could be swapped.
    if document.parameters != tuple(trained):
        raise ValueError("other parameters")
    # Only the type is checked here: `load_state_dict` compares the groups with the optimizer's own.
    optimizer = unflatten_tree(document.optimizer, tensors)
    if not isinstance(optimizer, dict):
        raise TypeError("no state of an optimizer")
    best = document.best
    best_adapter = _matching_tensors("best", tensors, trained) if best and best.adapter else ()
    return TrainState(
        step=document.step,
        adapter=_matching_tensors("adapter", tensors, trained),
        optimizer=optimizer,
        random=tuple(tensors[f"random/{number}"] for number in range(document.generators)),
        totals=document.totals,
        budget=document.budget,
        best=BestEvaluation(best.loss, best.step, best.stale, best_adapter) if best else None,
        recent=document.recent,
        since=document.since,
        last=document.last,
        before=document.before,
        train_seconds=document.train_seconds,
        eval_seconds=document.eval_seconds,
        method_state=document.pairs,
        warnings=document.warnings,
    )


def _matching_tensors(
    kind: str, tensors: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """Returns the tensors `KIND/I`, one for each trained parameter.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor is not finite, or has another shape or type: copying would broadcast or round it.
    """
    found = tuple(tensors[f"{kind}/{number}"] for number in range(len(trained)))
    for tensor, parameter in zip(found, trained.values(), strict=True):
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise ValueError("another shape")
        # A run that diverged writes no checkpoint, so this is damage; training on would end in a divergence.
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError("not finite")
    return found
