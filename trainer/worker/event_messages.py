"""Events of the training library as messages to the supervisor."""

from __future__ import annotations

from trainer.ipc.worker_messages import Metrics, Progress, Saved
from trainer.training.events import CheckpointWritten, MetricsMeasured, StepCompleted, TrainingEvent


def message_of_event(event: TrainingEvent) -> Progress | Metrics | Saved:
    """Returns the message that carries an event."""
    match event:
        case StepCompleted():
            return Progress(step=event.step, total_steps=event.total_steps, eta_seconds=event.eta_seconds)
        case MetricsMeasured():
            return Metrics(step=event.step, values=event.values)
        case CheckpointWritten():
            return Saved(step=event.step)
