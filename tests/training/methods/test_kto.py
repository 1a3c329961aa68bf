"""KTO against its formula written out over whole logits, against TRL, and what it does to a tiny model."""

from __future__ import annotations

import copy
import math
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.methods.pairs import (
    CPU,
    adapted,
    answers,
    disturb,
    pair_section,
    textbook_logps,
    values_of,
)
from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset, RowCounts
from trainer.spec import LoraSection, TrainSection
from trainer.training.adapter import attach_adapter
from trainer.training.events import StepCompleted, TrainingEvent
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.methods.judged_rows import mismatch_answers
from trainer.training.methods.kto import KahnemanTverskyOptimization
from trainer.training.methods.method import MethodInputs
from trainer.training.progress import TrainState
from trainer.training.step_policy import PlainStepPolicy

BETA, DESIRABLE, UNDESIRABLE = 0.3, 1.5, 0.7


def judged(numbers: range) -> tuple[Example, ...]:
    """One answer to each prompt; every third is undesirable."""
    return tuple(replace(answers(number)[number % 2], label=number % 3 != 0) for number in numbers)


TRAIN = judged(range(8))
HELD = judged(range(8, 13))


def section(**leaves: Any) -> TrainSection:
    weights = {"desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE}
    return pair_section(**{"method": "kto", "beta": BETA, **weights, **leaves})


def made(
    model: Any,
    settings: TrainSection,
    report: Any = lambda _event: None,
    *,
    fused: bool = True,
    held: tuple[Example, ...] = HELD,
) -> Trainer:
    loss = CausalLoss(model, CPU, pad_id=0, longest=64, fused=fused)
    data = Dataset(TRAIN, held, RowCounts(len(TRAIN), len(held), 0, 0), ())
    method = KahnemanTverskyOptimization(
        MethodInputs(data, loss, settings, CPU.device, reference=loss.adapter_disabled)
    )
    return Trainer(
        model, method, PlainStepPolicy(model, method, TRAIN, settings), settings, report=report
    )


def mismatched(examples: tuple[Example, ...], longest: int = 64) -> list[Example]:
    return mismatch_answers(examples, seed=section().seed, longest=longest)


def textbook(
    model: Any, examples: tuple[Example, ...], longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 8 of the paper in float64, row by row, with TRL's sign: loss and reference point."""
    others = mismatched(examples, longest)
    with torch.no_grad():
        divergence = textbook_logps(model, others)
        with model.disable_adapter():
            reference, other_reference = (
                textbook_logps(model, examples),
                textbook_logps(model, others),
            )
    point = torch.clamp((divergence - other_reference).mean(), min=0)
    ratios = textbook_logps(model, examples) - reference
    losses = [
        DESIRABLE * (1 - 1 / (1 + torch.exp(-BETA * (ratio - point))))
        if example.label
        else UNDESIRABLE * (1 - 1 / (1 + torch.exp(-BETA * (point - ratio))))
        for ratio, example in zip(ratios, examples, strict=True)
    ]
    return torch.stack(losses).mean(), point


@pytest.mark.parametrize("fused", [True, False])
def test_loss_and_gradient_are_those_of_the_formula(tiny_model: Path, fused: bool) -> None:
    model = adapted(tiny_model)
    training = made(model, section(), fused=fused, held=())
    disturb(model, -0.05)
    expected, point = textbook(model, TRAIN, max(example.length for example in TRAIN))
    assert point > 0  # so that the reference point takes part
    parameters = training.policy.parameters
    wanted = torch.cat(
        [gradient.flatten() for gradient in torch.autograd.grad(expected, parameters)]
    )
    step = next(training.policy.steps(0))
    for budget in (10_000, 60, 1):  # all rows at once, in pieces, each row alone
        sums = training.method.compute_gradients(step, budget)
        got = torch.cat(
            [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        )
        assert sums[0].item() == pytest.approx(expected.item(), rel=1e-5)
        assert float((got - wanted).norm()) <= 1e-5 * float(wanted.norm())
        model.zero_grad(set_to_none=True)


# TRL 1.16.0, KTOTrainer, given `judged(range(8))` with our mismatched answers in one batch, and `llama()` with an
# adapter that was disturbed after the trainer had taken the fresh one as its reference.
TRL = {
    "loss": 0.7898606, "kl": 0.2488360, "rewards_chosen": -0.5235455, "rewards_rejected": 1.4360054,
    "rewards_margins": -1.9595509, "logps_chosen": -47.6933442, "logps_rejected": -38.4321899,
}  # fmt: skip
TRL_GRADIENT_NORM = 2.5276568


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    sizes |= {
        "eos_token_id": 0,
        "pad_token_id": 1,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes))  # type: ignore[no-untyped-call]


def test_a_step_has_the_loss_the_metrics_and_the_gradient_of_trl() -> None:
    base = llama()
    torch.manual_seed(3)
    model = attach_adapter(base, LoraSection(lora_r=4))
    training = made(model, section(), held=())
    torch.manual_seed(8)
    disturb(model, -0.05)
    method: Any = training.method
    sums = method.compute_gradients(next(training.policy.steps(0)), 10_000)
    found = method.means_of(sums[1:], len(TRAIN))
    assert found == {name: pytest.approx(value, rel=1e-4) for name, value in TRL.items()}
    gradients = [
        parameter.grad.flatten()
        for parameter in training.policy.parameters
        if parameter.grad is not None
    ]
    assert float(torch.cat(gradients).norm()) == pytest.approx(TRL_GRADIENT_NORM, rel=1e-4)


def test_accumulated_batches_are_one_step(tiny_model: Path) -> None:
    adapters = []
    for size, accumulated in ((8, 1), (2, 4)):
        model = adapted(tiny_model)
        disturb(model, -0.05)
        settings = section(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            max_steps=2,
        )
        made(model, settings, held=()).run()
        adapters.append(
            torch.cat([item.flatten() for item in model.parameters() if item.requires_grad])
        )
    assert torch.allclose(adapters[0], adapters[1], rtol=1e-5, atol=1e-7)


def test_a_retried_step_keeps_its_reference_point(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_model)
    training = made(model, section(), held=())
    disturb(model, -0.05)
    method: Any = training.method
    step = next(training.policy.steps(0))
    exchanged: list[torch.Tensor] = []

    def all_reduce(_group: Any, values: torch.Tensor) -> torch.Tensor:
        exchanged.append(values)
        return values

    monkeypatch.setattr(type(method._ranks), "all_reduce", all_reduce)
    judge_rows = method.judge_rows

    def run_out_of_memory(*_arguments: Any) -> None:
        method.judge_rows = judge_rows
        raise MemoryError

    method.judge_rows = run_out_of_memory
    with pytest.raises(MemoryError):
        method.compute_gradients(step, 10_000)
    method.compute_gradients(step, 60)
    assert len(exchanged) == 1
    method.compute_gradients(step, 60)
    assert len(exchanged) == 2


def test_what_is_measured_is_what_the_formula_gives(tiny_model: Path) -> None:
    model = adapted(tiny_model)
    training = made(model, section())
    disturb(model, -0.05)
    loss, extra = training.method.evaluation.loss(), training.method.evaluation.measured()
    with torch.no_grad():
        expected, point = textbook(model, HELD, max(example.length for example in (*TRAIN, *HELD)))
        logps = textbook_logps(model, HELD)
        with model.disable_adapter():
            rewards = BETA * (logps - textbook_logps(model, HELD))
    label = torch.tensor([bool(example.label) for example in HELD])
    means = {
        "eval_kl": point,
        "eval_rewards_chosen": rewards[label].mean(),
        "eval_rewards_rejected": rewards[~label].mean(),
        "eval_rewards_margins": rewards[label].mean() - rewards[~label].mean(),
        "eval_logps_chosen": logps[label].mean(),
        "eval_logps_rejected": logps[~label].mean(),
    }
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert extra == {name: pytest.approx(value.item(), rel=1e-4) for name, value in means.items()}


def test_a_kind_of_answer_that_does_not_occur_has_no_mean(tiny_model: Path) -> None:
    held = tuple(replace(example, label=True) for example in HELD)
    training = made(adapted(tiny_model), section(), held=held)
    training.method.evaluation.loss()
    assert set(training.method.evaluation.measured()) == {
        "eval_kl",
        "eval_rewards_chosen",
        "eval_logps_chosen",
    }


def test_a_mismatched_answer_is_that_to_another_prompt() -> None:
    # Two answers to each prompt.
    examples = tuple(side for number in range(5) for side in answers(number))
    for example, other in zip(examples, mismatched(examples), strict=True):
        start = example.trained.index(1)
        assert other.ids[:start] == example.ids[:start]
        assert other.trained.index(1) == start
        answer = other.ids[start:]
        sources = [source for source in examples if source.ids[-len(answer) :] == answer]
        assert all(source.ids[:3] != example.ids[:3] for source in sources)
    assert sorted(
        len(other.ids) - other.trained.index(1) for other in mismatched(examples)
    ) == sorted(example.targets for example in examples)


def test_one_prompt_and_one_row_are_mismatched_as_far_as_possible() -> None:
    prompt = array("i", [1, 2, 3])
    rows = tuple(
        Example(prompt + array("i", [number]), b"\0\0\0\1", stops=True) for number in range(4)
    )
    assert all(one.ids != other.ids for one, other in zip(rows, mismatched(rows), strict=True))
    assert mismatched(rows[:1])[0].ids == rows[0].ids


def test_a_mismatched_answer_is_cut_to_the_longest_row() -> None:
    longest = max(example.length for example in TRAIN)
    found = mismatched(TRAIN, longest)
    assert max(example.length for example in found) <= longest
    assert all(len(example.trained) == example.length and example.targets for example in found)


def test_training_prefers_the_desirable_answers(tiny_model: Path) -> None:
    seen: list[TrainingEvent] = []
    settings = section(max_steps=20, logging_steps=10, learning_rate=1e-2)
    made(adapted(tiny_model), settings, seen.append, held=()).run()
    margins = values_of(seen, "rewards_margins")
    assert margins[20] > margins[10] > 0
    assert values_of(seen, "loss")[20] < values_of(seen, "loss")[10]


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tiny_model: Path) -> None:
    settings = section(max_steps=7, logging_steps=3, per_device_train_batch_size=3)
    lora = {"lora_dropout": 0.3}
    states: list[TrainState] = []
    events: list[list[TrainingEvent]] = [[], []]

    def keep(event: TrainingEvent) -> None:
        events[0].append(event)
        if isinstance(event, StepCompleted) and event.step == 4:
            states.append(copy.deepcopy(training.state()))

    uninterrupted = adapted(tiny_model, **lora)
    training = made(uninterrupted, settings, keep)
    expected = training.run()
    second = adapted(tiny_model, **lora)
    resumed = made(second, settings, events[1].append)
    torch.manual_seed(99)
    resumed.restore(states[0])
    outcome = resumed.run()
    for one, other in zip(uninterrupted.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (outcome.train_loss, outcome.pairs) == (expected.train_loss, expected.pairs)
    for name in ("loss", "kl", "rewards_margins"):
        assert values_of(events[1], name)[6] == values_of(events[0], name)[6]
        assert math.isfinite(values_of(events[0], name)[6])
