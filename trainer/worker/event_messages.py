"""Events of the training library as messages to the supervisor."""

from __future__ import annotations

from trainer.ipc.worker_messages import (
    Metrics,
    OutputSize,
    Preparing,
    Progress,
    Saved,
    TrainingMessage,
)
from trainer.training.events import (
    CheckpointWritten,
    MetricsMeasured,
    OutputSizeKnown,
    PreparationAdvanced,
    StepCompleted,
    TrainingEvent,
)


def message_of_event(event: TrainingEvent) -> TrainingMessage:
    """Returns the message that carries an event."""
    match event:
        case PreparationAdvanced():
            return Preparing(activity=event.activity, percent=event.percent)
        case OutputSizeKnown():
            return OutputSize(
                trained_parameters=event.trained_parameters, copied_bytes=event.copied_bytes
            )
        case StepCompleted():
            return Progress(step=event.step, total_steps=event.total_steps)
        case MetricsMeasured():
            return Metrics(step=event.step, values=event.values)
        case CheckpointWritten():
            return Saved(step=event.step)
