"""The events that a training run reports. Imports no torch: the process around the run forwards the events.

All of them are private. `trainer.job` decides which of their fields become public.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from trainer.models import (
    MAX_COPIED_BYTES,
    MAX_STATUS_STEPS,
    MAX_TRAINED_PARAMETERS,
    Activity,
    Percent,
    Strict,
)

_Count = Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)]
_MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class OutputSizeKnown(Strict):
    """Reports, before the first step, what the sizes of checkpoints and result follow from.

    Attributes:
        trained_parameters: number of parameters that are trained.
        copied_bytes: size of the merged model, if there is one, and of files copied from the base model.
    """

    trained_parameters: Annotated[int, Field(ge=0, le=MAX_TRAINED_PARAMETERS)]
    copied_bytes: Annotated[int, Field(ge=0, le=MAX_COPIED_BYTES)]


class PreparationAdvanced(Strict):
    """Reports what the run does before its first step, and how much of it is done; never less than before.

    Attributes:
        activity: what it does.
        percent: part of the dataset's bytes that was read, while rows are tokenised; 0 otherwise.
    """

    activity: Activity
    percent: Percent = 0


class StepCompleted(Strict):
    """Reports a complete optimizer step."""

    step: _Count
    total_steps: _Count


class MetricsMeasured(Strict):
    """Reports numbers by name after a step, such as `loss`, `eval_loss`, `grad_norm` and `tokens_per_second`."""

    step: _Count
    values: Annotated[dict[_MetricName, _Finite], Field(max_length=64)]


class CheckpointWritten(Strict):
    """Reports a complete checkpoint in `output_dir/checkpoints/STEP`; the supervisor seals and removes it."""

    step: Annotated[int, Field(ge=1, le=MAX_STATUS_STEPS)]


TrainingEvent = (
    PreparationAdvanced | OutputSizeKnown | StepCompleted | MetricsMeasured | CheckpointWritten
)

EventHandler = Callable[[TrainingEvent], None]
"""Receives each event in the training process, between optimizer steps."""
