"""The number of optimizer steps, and the learning rate of each: schedules of transformers, without torch.

The job trains with these rates, and `trainer validate` shows them. A schedule is a factor of the base rate
`train.learning_rate` that depends on the number of completed steps alone. With w the warm-up steps, n all steps
and s the completed ones:

- up to w, every schedule but `constant` rises linearly: s / w;
- `linear`: (n - s) / (n - w); `polynomial`: the same to the power `power`, between `learning_rate` and `lr_end`;
- `cosine`: (1 + cos(2π · num_cycles · p)) / 2 with p = (s - w) / (n - w), and half a cycle by default;
  `cosine_with_min_lr` scales it to end at the lower rate, `cosine_with_restarts` starts again in each cycle;
- `inverse_sqrt`: 1 / sqrt((s + t - w) / t) with t the `timescale`;
- `warmup_stable_decay`: 1 for `num_stable_steps`, then `num_decay_steps` along a cosine to `min_lr_ratio`.

Source: transformers 5.17, `optimization.py`; a test compares every rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import DataError, ErrorCode
from trainer.spec.train_section import TrainSection


def total_steps(train: TrainSection, units: int, processes: int = 1) -> int:
    """Returns the number of optimizer steps of a run.

    Args:
        train: batch size, accumulation and epochs.
        units: number of rows, pairs or packed bins to train on.
        processes: how many ranks share a step.
    """
    if train.max_steps > 0:
        return train.max_steps
    return max(1, math.ceil(train.num_train_epochs * steps_per_epoch(train, units, processes)))


def steps_per_epoch(train: TrainSection, units: int, processes: int = 1) -> int:
    """Returns the number of optimizer steps in which every unit is seen once; the last step may be smaller."""
    # ceil(ceil(units / batch size) / batches in a step), which for positive integers is one division.
    return math.ceil(
        units / (train.per_device_train_batch_size * train.gradient_accumulation_steps * processes)
    )


class LearningRate:
    """Computes the learning rate of a step as base rate · factor(step).

    The rate depends on the step's number alone, not on earlier calls. So a checkpoint contains no schedule, and a
    resumed run has bitwise the same rates.

    Args:
        section: base rate, schedule, and warm-up.
        total_steps: number of optimizer steps of the run.

    Attributes:
        warmup: number of steps of the warm-up.
    """

    def __init__(self, section: TrainSection, total_steps: int) -> None:
        self._section = section
        self._total = total_steps
        # As in transformers: a number of steps has precedence over the ratio, which is rounded up.
        self.warmup = section.warmup_steps or math.ceil(section.warmup_ratio * total_steps)
        if section.lr_scheduler_type == "constant":
            self.warmup = 0

    def at(self, step: int) -> float:
        """Returns the learning rate of an optimizer step; steps are counted from 1."""
        # The schedule counts completed steps, so the first step has factor(0): 0 with a warm-up.
        return self._section.learning_rate * self._factor(step - 1)

    def _factor(self, done: int) -> float:
        section, kwargs = self._section, self._section.lr_scheduler_kwargs
        if done < self.warmup:
            rise = done / self.warmup
            # Of `warmup_stable_decay`, which begins where it ends.
            lowest = kwargs.get("min_lr_ratio", 0.0)
            return max(0.0, rise * (1.0 - lowest) + lowest)
        remaining = max(1, self._total - self.warmup)
        progress = (done - self.warmup) / remaining
        match section.lr_scheduler_type:
            case "constant" | "constant_with_warmup":
                return 1.0
            case "linear":
                return max(0.0, (self._total - done) / remaining)
            case "cosine":
                return max(0.0, _cosine(0.5, progress))
            case "cosine_with_restarts":
                # One cycle is half a cosine wave, from 1 to 0.
                return (
                    0.0
                    if progress >= 1
                    else _cosine(0.5, kwargs.get("num_cycles", 1.0) * progress % 1.0)
                )
            case "cosine_with_min_lr":
                lowest = kwargs.get(
                    "min_lr_rate", kwargs.get("min_lr", 0.0) / section.learning_rate
                )
                return max(
                    0.0, _cosine(kwargs.get("num_cycles", 0.5), progress) * (1 - lowest) + lowest
                )
            case "polynomial":
                base, end = section.learning_rate, kwargs.get("lr_end", 1e-7)
                if done > self._total:
                    return end / base
                return float(
                    ((base - end) * (1 - progress) ** kwargs.get("power", 1.0) + end) / base
                )
            case "inverse_sqrt":
                timescale = kwargs.get("timescale", self.warmup or 10_000)
                return 1.0 / math.sqrt((done + timescale - self.warmup) / timescale)
            case "warmup_stable_decay":
                return self._stable_decay(done, kwargs)

    def _stable_decay(self, done: int, kwargs: Mapping[str, float]) -> float:
        lowest, decay = kwargs.get("min_lr_ratio", 0.0), kwargs["num_decay_steps"]
        stable = kwargs.get("num_stable_steps", self._total - self.warmup - decay)
        decayed = done - self.warmup - stable
        if decayed < 0:
            return 1.0
        if decayed >= decay:
            return lowest
        factor = _cosine(kwargs.get("num_cycles", 0.5), decayed / max(1, decay))
        return max(0.0, factor * (1.0 - lowest) + lowest)


def _cosine(cycles: float, progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))


@dataclass(frozen=True)
class LearningRatePath:
    """The learning rates of a run.

    Attributes:
        first: rate of the first step.
        peak: highest rate of any step.
        last: rate of the last step.
    """

    first: float
    peak: float
    last: float


def learning_rate_path(section: TrainSection, steps: int) -> LearningRatePath:
    """Returns the learning rates of a run of `steps` optimizer steps."""
    rates = LearningRate(section, steps)
    # No schedule rises after the warm-up. Its last step may be the highest: `warmup_stable_decay` falls at once
    # from a lower rate if the run has no room for its decay.
    around_peak = (min(max(rates.warmup + offset, 1), steps) for offset in (0, 1))
    return LearningRatePath(rates.at(1), max(map(rates.at, around_peak)), rates.at(steps))


def check_schedule(section: TrainSection, steps: int) -> list[str]:
    """Returns warnings on the schedule of a run of `steps` optimizer steps.

    Raises:
        DataError: `DATASET_NOT_TRAINABLE`: the learning rate is 0 at every step, so nothing would be learned.
    """
    path, warmup = (
        learning_rate_path(section, steps),
        min(LearningRate(section, steps).warmup, steps),
    )
    length = f"{steps} steps, {warmup} of them warm-up"
    if path.peak == 0:
        raise DataError(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "the learning rate is 0 at every step",
            expected=f"a rate above 0 in {length}",
            found=0,
            hint="lower train.warmup_steps or train.warmup_ratio, train for more steps, or add rows",
        )
    warnings = []
    if path.peak < section.learning_rate:
        warnings.append(
            f"the learning rate never reaches train.learning_rate {section.learning_rate:g}: in {length}, the "
            f"highest is {path.peak:g}"
        )
    if section.eval_steps is not None and section.eval_steps >= steps:
        warnings.append(
            f"train.eval_steps {section.eval_steps} is not below the {steps} steps of the run: the held-out loss "
            "is measured before the first and after the last step only"
        )
    return warnings
