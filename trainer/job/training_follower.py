"""Follows a worker that trains: what it reports is counted and held back, and released when the budget says so.

The worker may have been taken over, so nothing here happens at a time of its choice, apart from its end: progress,
private events and checkpoints wait for the next release of `trainer.job.disclosure_budget`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.ipc import worker_messages as protocol
from trainer.job.checkpoints import CheckpointStore
from trainer.job.disclosure_budget import (
    RELEASES,
    CheckpointAllowance,
    PreparationMeter,
    PreparationRelease,
    ProgressRelease,
    ReleaseSchedule,
    StepCounter,
)
from trainer.job.private_events import MAX_EVENT_METRICS
from trainer.spec import JobSpec


class Disclosures(Protocol):
    """What a follower has others do."""

    def require_running(self) -> None:
        """Checks that the front still runs."""

    def require_room(self, size: protocol.OutputSize) -> None:
        """Checks that checkpoints and result fit into the ciphertext directory."""

    def publish(self, progress: ProgressRelease | PreparationRelease) -> None:
        """Makes progress public."""

    def send_metrics(self, metrics: list[protocol.Metrics]) -> None:
        """Sends the latest metrics to the provider, in an event of constant size."""


@dataclass(frozen=True)
class _PendingCheckpoint:
    step: int
    due: float


class TrainingFollower:
    """Handles the messages of one worker between its order and its last message.

    Args:
        spec: the job spec.
        output: the worker's output directory.
        checkpoints: seals what the worker saves.
        disclosures: publishes.
        is_terminating: returns whether SIGTERM has arrived.
        releases: how many releases earlier tries of this start have left.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        spec: JobSpec,
        output: Path,
        checkpoints: CheckpointStore,
        disclosures: Disclosures,
        is_terminating: Callable[[], bool],
        *,
        releases: int = RELEASES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._save_steps = spec.train.save_steps
        self._output = output
        self._checkpoints = checkpoints
        self._disclosures = disclosures
        self._is_terminating = is_terminating
        self._clock = clock
        self._schedule = ReleaseSchedule(clock(), releases)
        self._steps = StepCounter(
            checkpoints.last or 0, spec.train.max_steps if spec.train.max_steps > 0 else None
        )
        self._preparation: PreparationMeter | None = PreparationMeter()
        self._allowance = CheckpointAllowance(self._schedule)
        self._released = 0
        self._metrics: deque[protocol.Metrics] = deque(maxlen=MAX_EVENT_METRICS)
        self._pending: _PendingCheckpoint | None = None
        self._last_saved = self._steps.step
        self._has_size = False

    @property
    def has_trained(self) -> bool:
        """Whether there is an optimizer step: of this worker, or in the checkpoint that it goes on from."""
        return self._steps.step > 0

    @property
    def releases_left(self) -> int:
        """How many releases there are for the next try of this start."""
        return self._schedule.limit - self._released

    def wait_seconds(self) -> float | None:
        """Returns the seconds until something has to be released; None if nothing has to be."""
        now = self._clock()
        due = [self._pending.due] if self._pending else []
        if (release := self._schedule.next_release(now)) is not None:
            due.append(release)
        return max(0.0, min(due) - now) if due else None

    def take(self, message: protocol.TrainingMessage) -> None:
        """Handles a message.

        Raises:
            JobError: the worker does not keep to the protocol, the front ended, or there is no room.
        """
        self._disclosures.require_running()
        match message:
            case protocol.Preparing():
                if self._preparation is None:
                    raise protocol.FROM_WORKER.violation("it prepares after its first step")
                self._preparation.add(message.activity, message.percent)
            case protocol.Progress():
                self._steps.add(message.step, message.total_steps)
                self._preparation = None
            case protocol.Metrics():
                self._metrics.append(message)
            case protocol.Saved():
                self._take_saved(message.step)
            case protocol.OutputSize():
                if self._has_size:
                    raise protocol.FROM_WORKER.violation("it stated the sizes of its output twice")
                self._has_size = True
                self._disclosures.require_room(message)

    def release(self) -> None:
        """Releases what is due. A release that is missed, because an earlier one took long, is left out."""
        now = self._clock()
        if self._pending is not None and self._pending.due <= now:
            self._seal_pending()
        if (number := self._schedule.count(now)) > self._released:
            self._released = number
            self._publish(self._schedule.seconds(number))

    def finish(self) -> None:
        """Releases what is left, at the end of training."""
        self._seal_pending()
        self._released = self._schedule.count(self._clock())
        self._publish(self._schedule.seconds(self._released))

    def _publish(self, seconds: int) -> None:
        progress = (self._preparation or self._steps).release(seconds)
        if progress is not None:
            self._disclosures.publish(progress)
        metrics = list(self._metrics)
        self._metrics.clear()
        # Also without metrics: whether there are any is the worker's choice.
        self._disclosures.send_metrics(metrics)

    def _take_saved(self, step: int) -> None:
        """Has a saved state sealed, or removes it: a worker may save more often than the budget admits."""
        if step != self._steps.step or step <= self._last_saved:
            raise protocol.FROM_WORKER.violation(
                "it saved another state than that of its last step",
                expected=self._steps.step,
                found=step,
            )
        self._last_saved = step
        is_regular = (
            self._save_steps is not None
            and step % self._save_steps == 0
            and step != self._steps.total
        )
        now = self._clock()
        due = self._allowance.time(now, scheduled=is_regular and not self._is_terminating())
        if due is None:
            self._checkpoints.drop(step, self._output)
            return
        if self._pending is not None:  # the newer state replaces it
            self._checkpoints.drop(self._pending.step, self._output)
        self._pending = _PendingCheckpoint(step, due)
        if due <= now:
            self._seal_pending()

    def _seal_pending(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._checkpoints.take(pending.step, self._output)
