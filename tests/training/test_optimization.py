"""Learning rates and optimizers are the ones of Hugging Face under the same names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from trainer.errors import ErrorCode, JobError
from trainer.spec import LearningRate, LearningRatePath, TrainSection, learning_rate_path
from trainer.training.optimization import make_optimizer, set_learning_rate

STEPS = 20


def rates(**section: Any) -> list[float]:
    schedule = LearningRate(TrainSection(learning_rate=0.5, **section), STEPS)
    return [schedule.at(step) for step in range(1, STEPS + 1)]


def test_linear_ends_one_step_above_zero() -> None:
    assert rates() == pytest.approx([0.5 * (STEPS - step) / STEPS for step in range(STEPS)])


def test_warmup_steps_override_the_ratio() -> None:
    assert rates(warmup_ratio=0.5, warmup_steps=4)[:5] == pytest.approx(
        [0, 0.125, 0.25, 0.375, 0.5]
    )
    assert rates(warmup_ratio=0.2)[:5] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])


def test_cosine_with_a_floor() -> None:
    made = rates(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 0.1})
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert made == pytest.approx(expected)


def test_stable_then_decaying() -> None:
    made = rates(
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=2,
        lr_scheduler_kwargs={"num_decay_steps": 5.0},
    )
    assert made[2:15] == [0.5] * 13
    assert made[15:] == sorted(made[15:], reverse=True)
    assert made[-1] < 0.2


@pytest.mark.parametrize(
    "section",
    [
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.01}},
        {
            "lr_scheduler_type": "inverse_sqrt",
            "warmup_steps": 3,
            "lr_scheduler_kwargs": {"timescale": 4},
        },
    ],
    ids=str,
)
def test_every_schedule_stays_within_its_bounds(section: dict[str, Any]) -> None:
    made = rates(**section)
    assert all(0 <= rate <= 0.5 for rate in made)
    assert max(made) == pytest.approx(0.5)


SCHEDULES: list[dict[str, Any]] = [
    {"lr_scheduler_type": "linear"},
    {"lr_scheduler_type": "cosine"},
    {"lr_scheduler_type": "constant"},
    {"lr_scheduler_type": "constant_with_warmup"},
    {"lr_scheduler_type": "cosine_with_restarts"},
    {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3.0}},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.1}},
    {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.2, "num_cycles": 1.5},
    },
    {"lr_scheduler_type": "polynomial"},
    {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.01}},
    {"lr_scheduler_type": "inverse_sqrt"},
    {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 4.0}},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5.0}},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 30.0}},
    {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_decay_steps": 5.0,
            "num_stable_steps": 3.0,
            "min_lr_ratio": 0.1,
            "num_cycles": 0.25,
        },
    },
]


@pytest.mark.filterwarnings("ignore:Both num_training_steps")
@pytest.mark.parametrize(
    "warmup", [{}, {"warmup_steps": 3}, {"warmup_ratio": 0.26}, {"warmup_steps": 25}], ids=str
)
@pytest.mark.parametrize("section", SCHEDULES, ids=str)
def test_every_rate_is_that_of_transformers(
    section: dict[str, Any], warmup: dict[str, Any]
) -> None:
    from transformers import get_scheduler

    settings = TrainSection(learning_rate=0.5, **section, **warmup)
    scheduler: Any = get_scheduler(
        settings.lr_scheduler_type,
        torch.optim.SGD([parameter()], lr=settings.learning_rate),
        num_warmup_steps=settings.warmup_steps or math.ceil(settings.warmup_ratio * STEPS),
        num_training_steps=STEPS,
        scheduler_specific_kwargs={
            name: int(value) if value.is_integer() else value
            for name, value in settings.lr_scheduler_kwargs.items()
        },
    )
    expected = [0.5 * float(scheduler.lr_lambdas[0](done)) for done in range(STEPS)]
    rates = LearningRate(settings, STEPS)
    assert [rates.at(step) for step in range(1, STEPS + 1)] == expected
    assert learning_rate_path(settings, STEPS) == LearningRatePath(
        expected[0], max(expected), expected[-1]
    )


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


def stepped(**section: Any) -> torch.Tensor:
    weights = parameter()
    settings = TrainSection(learning_rate=0.1, **section)
    optimizer = make_optimizer({"weights": weights}, settings)
    set_learning_rate(optimizer, LearningRate(settings, 10).at(6))
    weights.grad = torch.tensor([0.5, -0.25, 0.0])
    optimizer.step()
    return weights.detach()


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adamw_by_hand(optim: str) -> None:
    """The first step of Adam is lr * sign(g) but for epsilon; decay comes first (Loshchilov and Hutter)."""
    found = stepped(
        optim=optim, weight_decay=0.1, adam_epsilon=1e-4, adam_beta1=0.8, adam_beta2=0.9
    )
    start, gradient = parameter().detach(), torch.tensor([0.5, -0.25, 0.0])
    expected = start * (1 - 0.05 * 0.1) - 0.05 * gradient / (gradient.abs() + 1e-4)
    torch.testing.assert_close(found, expected)


def test_sgd_by_hand() -> None:
    expected = parameter().detach() - 0.05 * torch.tensor([0.5, -0.25, 0.0])
    torch.testing.assert_close(stepped(optim="sgd"), expected)


def test_adafactor_takes_the_learning_rate_of_the_schedule() -> None:
    moved = (stepped(optim="adafactor") - parameter().detach()).abs()
    assert 0 < float(moved.max()) <= 0.05 * 1.01 * 3**0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_eight_bit_states_need_a_gpu() -> None:
    with pytest.raises(JobError) as caught:
        make_optimizer({"weights": parameter()}, TrainSection(optim="adamw_8bit"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_matrices_b_have_a_learning_rate_of_their_own(optim: Any) -> None:
    names = ("q.lora_A.default.weight", "q.lora_B.default.weight", "q.lora_magnitude_vector.default.weight",
             "embed.lora_embedding_A.default", "embed.lora_embedding_B.default")  # fmt: skip
    parameters = {name: parameter() for name in names}
    optimizer = make_optimizer(
        parameters, TrainSection(learning_rate=0.1, loraplus_lr_ratio=16, optim=optim)
    )
    set_learning_rate(optimizer, 0.05)
    rates = {id(item): group["lr"] for group in optimizer.param_groups for item in group["params"]}
    found = {name: rates[id(item)] for name, item in parameters.items()}
    assert found == {name: pytest.approx(0.8 if "B" in name else 0.05) for name in names}
