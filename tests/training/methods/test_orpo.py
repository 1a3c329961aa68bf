"""ORPO against its formula written out over whole logits, and what it does to a tiny model."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.training.methods.pairs import (
    HELD,
    TRAIN,
    adapted,
    disturb,
    pair_section,
    pair_trainer,
    textbook_logps,
    values_of,
)
from trainer.data.examples.example import Example
from trainer.spec import METHOD_RULES, MethodName, TrainSection
from trainer.training.events import StepCompleted, TrainingEvent
from trainer.training.methods.orpo import MEASURED, OddsRatioPreferenceOptimization, log_odds_ratio
from trainer.training.methods.registry import METHODS
from trainer.training.progress import TrainState

LAMBDA = 0.3


def section(**leaves: Any) -> TrainSection:
    return pair_section(**{"method": "orpo", "beta": LAMBDA, **leaves})


made = partial(pair_trainer, OddsRatioPreferenceOptimization)


def textbook(model: Any, examples: tuple[Example, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 3 to 7 of the paper in float64, from probabilities: loss, and the log odds ratio of each pair."""
    tokens = torch.tensor([float(sum(example.trained)) for example in examples]).double()
    probability = torch.exp(textbook_logps(model, examples) / tokens)
    odds = probability / (1 - probability)
    ratio = torch.log(odds[::2] / odds[1::2])
    preference = -torch.log(1 / (1 + torch.exp(-ratio)))
    return (-torch.log(probability[::2]) + LAMBDA * preference).mean(), ratio


@pytest.mark.parametrize("fused", [True, False])
def test_loss_and_gradient_are_those_of_the_formula(tiny_model: Path, fused: bool) -> None:
    model = adapted(tiny_model)
    training = made(model, section(), fused=fused, held=())
    disturb(model, 0.05)
    expected, _ = textbook(model, TRAIN)
    parameters = training.policy.parameters
    wanted = torch.cat(
        [gradient.flatten() for gradient in torch.autograd.grad(expected, parameters)]
    )
    step = next(training.policy.steps(0))
    for budget in (10_000, 60, 1):  # whole, in pieces, each pair alone
        sums = training.method.compute_gradients(step, budget)
        got = torch.cat(
            [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        )
        assert sums[0].item() == pytest.approx(expected.item(), rel=1e-5)
        assert float((got - wanted).norm()) <= 1e-5 * float(wanted.norm())
        model.zero_grad(set_to_none=True)


def test_what_is_measured_is_what_the_formula_gives(tiny_model: Path) -> None:
    model = adapted(tiny_model)
    training = made(model, section())
    disturb(model, 0.05)
    loss = training.method.evaluation.loss()
    extra = training.method.evaluation.measured()
    assert set(extra) == {f"eval_{name}" for name in MEASURED}
    with torch.no_grad():
        expected, ratio = textbook(model, HELD)
        tokens = torch.tensor([float(sum(example.trained)) for example in HELD]).double()
        means = textbook_logps(model, HELD) / tokens
    chosen, rejected = means[::2], means[1::2]
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert extra["eval_log_odds_chosen"] == pytest.approx(ratio.mean().item(), rel=1e-3, abs=1e-5)
    assert extra["eval_log_odds_ratio"] == pytest.approx(
        torch.nn.functional.logsigmoid(ratio).mean().item(), rel=1e-4
    )
    assert extra["eval_nll_loss"] == pytest.approx(-chosen.mean().item(), rel=1e-5)
    assert extra["eval_rewards_chosen"] == pytest.approx(LAMBDA * chosen.mean().item(), rel=1e-5)
    assert extra["eval_rewards_accuracies"] == pytest.approx(
        (chosen > rejected).double().mean().item()
    )


def test_certainty_gives_numbers() -> None:
    chosen = torch.tensor([0.0, -1e-12, -40.0, -1.0], requires_grad=True)
    rejected = torch.tensor([-1.0, -40.0, 0.0, -1.0], requires_grad=True)
    ratio = log_odds_ratio(chosen, rejected)
    gradients = torch.autograd.grad(torch.nn.functional.logsigmoid(ratio).sum(), (chosen, rejected))
    assert bool(ratio.isfinite().all())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert ratio[3].item() == 0.0


def test_training_prefers_the_chosen_answers(tiny_model: Path) -> None:
    seen: list[TrainingEvent] = []
    settings = section(max_steps=30, logging_steps=10, learning_rate=1e-2)
    made(adapted(tiny_model), settings, seen.append, held=()).run()
    assert values_of(seen, "log_odds_chosen")[30] > values_of(seen, "log_odds_chosen")[10]
    assert values_of(seen, "nll_loss")[30] < values_of(seen, "nll_loss")[10]
    assert values_of(seen, "rewards_accuracies")[30] >= 0.75


@pytest.mark.parametrize("lora", [{}, {"lora_dropout": 0.3}], ids=str)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    tiny_model: Path, lora: dict[str, Any]
) -> None:
    settings = section(max_steps=7, logging_steps=3, per_device_train_batch_size=3)
    states: list[TrainState] = []
    events: list[list[TrainingEvent]] = [[], []]

    def keep(event: TrainingEvent) -> None:
        events[0].append(event)
        if isinstance(event, StepCompleted) and event.step == 4:
            states.append(copy.deepcopy(training.state()))

    whole = adapted(tiny_model, **lora)
    training = made(whole, settings, keep)
    expected = training.run()
    second = adapted(tiny_model, **lora)
    resumed = made(second, settings, events[1].append)
    torch.manual_seed(99)
    resumed.restore(states[0])
    outcome = resumed.run()
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (outcome.train_loss, outcome.pairs) == (expected.train_loss, expected.pairs)
    for name in ("loss", *MEASURED):
        assert values_of(events[1], name)[6] == values_of(events[0], name)[6]
        assert math.isfinite(values_of(events[0], name)[6])


def test_every_method_of_the_spec_is_registered_and_described() -> None:
    names = set(get_args(MethodName))
    assert set(METHODS) == set(METHOD_RULES) == names
    assert all(
        METHODS[name].rows_per_unit == rules.examples_per_row
        for name, rules in METHOD_RULES.items()
    )
