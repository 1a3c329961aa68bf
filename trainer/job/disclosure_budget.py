"""What a worker can make public in one start of the job, and when: the bounds of its outward channels.

The worker sees the dataset and may have been taken over by a hostile row. It has no network, but the operator sees
what the supervisor publishes on its word: steps, checkpoints, an end. Each of these could encode rows. So they are
released at times that are fixed when training begins, and each release has few possible values:

    releases     RELEASES in one start: TICKS_PER_LEVEL at TICK_SECONDS apart, as many at twice that, and so on
    a release    one of PROGRESS_VALUES + 1 steps, or before the first one of PREPARATION_VALUES activities; and
                 one private event of constant size
    checkpoints  one between two releases, at a whole second, and UNSCHEDULED_CHECKPOINTS besides
    tries        a dataset that is refused before the first step counts: its releases are taken from the next one's

docs/threat-model.md derives the number of bits. Pure: times are arguments, in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from trainer.ipc.worker_messages import FROM_WORKER
from trainer.models import Activity

TICK_SECONDS: Final = 1
TICKS_PER_LEVEL: Final = 64
LEVELS: Final = 16
RELEASES: Final = TICKS_PER_LEVEL * LEVELS
"""The last one is 48 days after training began; a longer start trains on, and publishes its end alone."""

PROGRESS_VALUES: Final = 1000
PREPARATION_PERCENT: Final = 5
PREPARATION_VALUES: Final = 100 // PREPARATION_PERCENT + len(Activity) - 1
"""Twentieths of the tokenising, and the activities after it. A step, one of these, or nothing: 1,024 values."""

UNSCHEDULED_CHECKPOINTS: Final = 2
"""Checkpoints at any step and time: after the last step, and after SIGTERM."""


@dataclass(frozen=True)
class ReleaseSchedule:
    """The times of the releases of one start.

    Args:
        begin: when training began.
        limit: how many there are: what the earlier tries of this start have left of RELEASES.
    """

    begin: float
    limit: int = RELEASES

    def count(self, now: float) -> int:
        """Returns how many releases were due by `now`."""
        seconds = max(0, math.floor((now - self.begin) / TICK_SECONDS))
        # Level n has intervals of 2^n ticks and begins after TICKS_PER_LEVEL * (2^n - 1) of them.
        level = (seconds // TICKS_PER_LEVEL + 1).bit_length() - 1
        in_level = (seconds - TICKS_PER_LEVEL * ((1 << level) - 1)) >> level
        return min(self.limit, TICKS_PER_LEVEL * level + in_level)

    def seconds(self, number: int) -> int:
        """Returns the time of a release, counted from 1, in seconds after training began."""
        level, in_level = divmod(number, TICKS_PER_LEVEL)
        return TICK_SECONDS * (TICKS_PER_LEVEL * ((1 << level) - 1) + (in_level << level))

    def next_release(self, now: float) -> float | None:
        """Returns the time of the first release after `now`; None after the last one."""
        due = self.count(now)
        return None if due >= self.limit else self.begin + self.seconds(due + 1)

    def next_tick(self, now: float) -> float:
        """Returns the first whole tick after `now`."""
        return self.begin + TICK_SECONDS * (math.floor((now - self.begin) / TICK_SECONDS) + 1)


@dataclass(frozen=True)
class ProgressRelease:
    """What is published of the progress: the arguments of a public event."""

    step: int
    total_steps: int
    eta_seconds: int | None


@dataclass(frozen=True)
class PreparationRelease:
    """What is published before the first step: the arguments of a public event."""

    activity: Activity
    percent: int | None
    eta_seconds: int | None


class PreparationMeter:
    """Follows what the worker does before its first step, and decides what is published of it."""

    def __init__(self) -> None:
        self._now = (0, 0)  # the number of the activity, and its percent
        self._published: tuple[int, int] | None = None
        self._first: tuple[int, int] | None = None

    def add(self, activity: Activity, percent: int) -> None:
        """Takes what the worker does now.

        Raises:
            JobError: WORKER_DIED: it did that already, and has gone on since.
        """
        reached = (_ACTIVITIES.index(activity), percent)
        if reached < self._now:
            raise FROM_WORKER.violation(
                "its preparation goes backwards", expected=self._now, found=reached
            )
        self._now = reached

    def release(self, seconds: int) -> PreparationRelease | None:
        """Returns what to publish, `seconds` after training began; None if it is known already.

        As for steps, the estimate follows from what is published.
        """
        number, percent = self._now
        # Only tokenising is measured; it is never done before the next activity says so.
        percent = (
            min(percent, 100 - PREPARATION_PERCENT) // PREPARATION_PERCENT * PREPARATION_PERCENT
        )
        reached = (number, 0 if number else percent)
        if self._published is not None and reached <= self._published:
            return None
        self._published = reached
        if number:
            return PreparationRelease(_ACTIVITIES[number], None, None)
        first_seconds, first_percent = self._first = self._first or (seconds, percent)
        pace = (
            (seconds - first_seconds) / (percent - first_percent)
            if percent > first_percent
            else None
        )
        left = None if pace is None else math.ceil((100 - percent) * pace)
        return PreparationRelease(_ACTIVITIES[0], percent, left)


_ACTIVITIES: Final = tuple(Activity)


class StepCounter:
    """Counts the worker's optimizer steps, and decides what is published of them.

    Args:
        done: step of the authenticated checkpoint that training goes on from; 0 without one.
        total: number of steps, if the job spec names it; None takes the worker's first word for it.
    """

    def __init__(self, done: int, total: int | None) -> None:
        self.step = done
        self.total = total
        self._published = done
        self._first: tuple[int, int] | None = None

    def add(self, step: int, total: int) -> None:
        """Counts a step.

        Raises:
            JobError: WORKER_DIED: it is not the next one, or the total is another.
        """
        # A worker that could skip steps, or change the total, could send a number of its choice with each message.
        if self.total is None:
            self.total = total
        expected = (self.step + 1, self.total)
        if (step, total) != expected or step > total:
            raise FROM_WORKER.violation(
                "its steps do not follow each other",
                expected=f"step {expected[0]} of {expected[1]}",
                found=step,
            )
        self.step = step

    def release(self, seconds: int) -> ProgressRelease | None:
        """Returns what to publish, `seconds` after training began; None if it is known already.

        Each value follows from the steps and times that are published, so that the estimate adds no information.
        """
        if self.total is None:
            return None
        unit = math.ceil(self.total / PROGRESS_VALUES)
        step = self.step if self.step == self.total else self.step - self.step % unit
        if step <= self._published:
            return None
        self._published = step
        first_seconds, first_step = self._first = self._first or (seconds, step)
        left = self.total - step
        pace = (seconds - first_seconds) / (step - first_step) if step > first_step else None
        return ProgressRelease(
            step, self.total, 0 if not left else math.ceil(left * pace) if pace else None
        )


class CheckpointAllowance:
    """Decides which states that the worker saves are sealed, and when.

    Args:
        schedule: one checkpoint is sealed between two of its releases.
    """

    def __init__(self, schedule: ReleaseSchedule) -> None:
        self._schedule = schedule
        self._last_interval = -1
        self._unscheduled = UNSCHEDULED_CHECKPOINTS

    def time(self, now: float, *, scheduled: bool) -> float | None:
        """Returns when a state that was saved at `now` is sealed; None if it is dropped.

        Args:
            now: when the worker reported it.
            scheduled: whether it was saved at a multiple of `save_steps`.
        """
        if not scheduled:
            self._unscheduled -= 1
            return now if self._unscheduled >= 0 else None
        interval = self._schedule.count(now)
        if interval in {self._last_interval, self._schedule.limit}:
            return None
        self._last_interval = interval
        return self._schedule.next_tick(now)
