"""The document `state.json` of a checkpoint: all of a run's state but its tensors."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, JsonValue

from trainer.models import MAX_STATUS_STEPS, One, Strict
from trainer.training.task_summary import TaskFigures

_Step = Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)]
_MAX_SUMS: Final = 16  # numbers in `Method.state`; the methods of this version have at most 11
_Totals = tuple[float, _Step, _Step]


class BestDocument(Strict):
    """The best evaluation so far; `adapter` says whether its tensors are saved."""

    loss: float
    step: _Step
    stale: _Step
    adapter: bool


class StateDocument(Strict):
    """`state.json`. The tensors beside it are named `adapter/I`, `best/I`, `random/I` and `optimizer/PATH`."""

    version: One
    step: Annotated[int, Field(ge=1, le=MAX_STATUS_STEPS)]
    parameters: tuple[str, ...]
    optimizer: JsonValue
    generators: Annotated[int, Field(ge=1, le=2)]
    totals: _Totals
    recent: _Totals
    since: float
    budget: Annotated[int, Field(ge=1)]
    best: BestDocument | None
    last: tuple[_Step, float] | None
    before: float | None
    train_seconds: float
    eval_seconds: float
    pairs: Annotated[tuple[float, ...], Field(max_length=_MAX_SUMS)]
    warnings: tuple[str, ...]
    samples: tuple[dict[str, str], ...]
    task: TaskFigures | None
    draw: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    resumed_at: tuple[_Step, ...]
