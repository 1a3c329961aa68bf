"""The learning rate of a run, as the provider's machine computes it."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.errors import DataError, ErrorCode
from trainer.spec import LearningRatePath, TrainSection, check_schedule, learning_rate_path


@pytest.mark.parametrize(
    ("section", "steps", "path"),
    [
        ({}, 4, LearningRatePath(2.0, 2.0, 0.5)),
        ({"warmup_steps": 1}, 4, LearningRatePath(0.0, 2.0, 2 / 3)),
        ({"warmup_steps": 8}, 4, LearningRatePath(0.0, 0.75, 0.75)),
        ({"lr_scheduler_type": "constant"}, 4, LearningRatePath(2.0, 2.0, 2.0)),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5},
            4,
            LearningRatePath(0.0, 2.0, 2.0),
        ),
    ],
)
def test_first_peak_and_last(section: dict[str, Any], steps: int, path: LearningRatePath) -> None:
    scaled = TrainSection.model_construct(
        **{**TrainSection().model_dump(), "learning_rate": 2.0, **section}
    )
    assert learning_rate_path(scaled, steps) == path


@pytest.mark.parametrize(
    "section",
    [
        {"warmup_ratio": 0.03},
        {"warmup_steps": 100},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_stable_steps": 0.0, "num_decay_steps": 0.0},
        },
    ],
)
def test_a_run_without_a_rate_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="the learning rate is 0 at every step") as caught:
        check_schedule(TrainSection(**section), 1)
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE


def test_a_peak_that_is_never_reached_is_told() -> None:
    (warning,) = check_schedule(TrainSection(warmup_steps=100), 4)
    assert (
        "never reaches train.learning_rate 0.0002: in 4 steps, 4 of them warm-up, the highest is 6e-06"
        in warning
    )
    assert check_schedule(TrainSection(warmup_steps=2), 4) == []
    assert check_schedule(TrainSection(), 1) == []


def test_an_evaluation_that_never_comes_is_told() -> None:
    (warning,) = check_schedule(TrainSection(eval_steps=4), 4)
    assert warning.startswith("train.eval_steps 4 is not below the 4 steps")
    assert check_schedule(TrainSection(eval_steps=3), 4) == []
