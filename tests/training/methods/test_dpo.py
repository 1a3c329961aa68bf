"""Preference training against the formulas written out over whole logits, and what it does to a tiny model."""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from tests.training.methods.pairs import (
    CPU,
    TRAIN,
    adapted,
    disturb,
    pair_section,
    pair_trainer,
    textbook_logps,
    values_of,
)
from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset, RowCounts
from trainer.spec import TrainSection
from trainer.training.events import MetricsMeasured, StepCompleted, TrainingEvent
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.methods.dpo import DirectPreferenceOptimization
from trainer.training.methods.dpo_loss import MEASURED, TERMS, loss_part, measure
from trainer.training.methods.method import MethodInputs
from trainer.training.methods.pair_method import Pairs, PairTotals
from trainer.training.methods.reference import log_probabilities, sort_units
from trainer.training.progress import TrainState
from trainer.training.step_policy import PlainStepPolicy
from trainer.training.token_store import TokenStore

BETA = 0.3


def section(**leaves: Any) -> TrainSection:
    return pair_section(**{"method": "dpo", "beta": BETA, **leaves})


def made(
    model: Any,
    settings: TrainSection,
    report: Callable[[TrainingEvent], None] = lambda _message: None,
    *,
    reference: str = "adapter_disabled",
    **options: Any,
) -> Trainer:
    def method_of(inputs: MethodInputs) -> DirectPreferenceOptimization:
        return DirectPreferenceOptimization(
            replace(inputs, reference=getattr(inputs.loss, reference))
        )

    return pair_trainer(method_of, model, settings, report, **options)


def textbook_loss(
    name: str, policy: torch.Tensor, reference: torch.Tensor, examples: Sequence[Example]
) -> Any:
    """The mean over pairs of each loss, as its paper writes it."""
    tokens = torch.tensor([float(sum(example.trained)) for example in examples]).double()
    pi_c, pi_r, ref_c, ref_r = policy[::2], policy[1::2], reference[::2], reference[1::2]
    n_c, n_r = tokens[::2], tokens[1::2]
    margin = (pi_c - pi_r) - (ref_c - ref_r)
    h_c, h_r = pi_c - ref_c, pi_r - ref_r
    each = {
        "sigmoid": torch.log(1 + torch.exp(-BETA * margin)),
        "hinge": torch.clamp(1 - BETA * margin, min=0),
        "ipo": (h_c / n_c - h_r / n_r - 1 / (2 * BETA)) ** 2,
        "robust": (-0.9 * logsigmoid(BETA * margin) + 0.1 * logsigmoid(-BETA * margin)) / 0.8,
        "sigmoid_norm": -logsigmoid(BETA * (h_c / n_c - h_r / n_r)),
        "nca_pair": -logsigmoid(BETA * h_c)
        - 0.5 * (logsigmoid(-BETA * h_c) + logsigmoid(-BETA * h_r)),
        "sppo_hard": (h_c - 0.5 / BETA) ** 2 + (h_r + 0.5 / BETA) ** 2,
        "apo_zero": 1 - torch.sigmoid(BETA * h_c) + torch.sigmoid(BETA * h_r),
        "apo_down": torch.sigmoid(BETA * h_c) + 1 - torch.sigmoid(BETA * margin),
        "sft": -pi_c.sum() / n_c.sum(),
    }
    return each[name].mean()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", [*TERMS, "sft"])
def test_loss_and_gradient_are_those_of_the_formula(
    tiny_model: Path, name: str, fused: bool
) -> None:
    extra: dict[str, dict[str, Any]] = {
        "robust": {"label_smoothing": 0.1},
        "sft": {"loss_type": ("sigmoid", "sft"), "loss_weights": (0.5, 2.0)},
    }
    settings = section(**{"loss_type": name, **extra.get(name, {})})
    model = adapted(tiny_model)
    training = made(model, settings, fused=fused, held=())
    disturb(model, 0.05)  # so that policy and reference differ
    with torch.no_grad(), model.disable_adapter():
        reference = textbook_logps(model, TRAIN)
    policy = textbook_logps(model, TRAIN)
    expected = textbook_loss(name, policy, reference, TRAIN)
    if name == "sft":
        expected = 2.0 * expected + 0.5 * textbook_loss("sigmoid", policy, reference, TRAIN)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wanted = torch.cat(
        [gradient.flatten() for gradient in torch.autograd.grad(expected, parameters)]
    )
    step = next(training.policy.steps(0))
    for budget in (10_000, 60, 1):  # whole, in pieces, each pair alone
        found = training.method.compute_gradients(step, budget)
        got = torch.cat(
            [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        )
        assert found[0].item() == pytest.approx(expected.item(), rel=1e-5)
        assert float((got - wanted).norm()) <= 1e-5 * float(wanted.norm())
        model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "lora",
    [{}, {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"},
     {"use_dora": True}, {"lora_dropout": 0.5}],
    ids=str,
)  # fmt: skip
def test_the_reference_is_the_base_model_whatever_the_adapter_starts_from(
    tiny_model: Path, lora: dict[str, Any], fused: bool
) -> None:
    """Where the start changes the base weights, base and fresh adapter together are the base model."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        wanted = textbook_logps(base, TRAIN)
    model = adapted(tiny_model, **lora)
    model.train()
    changed = str(lora.get("init_lora_weights")) in ("pissa", "olora")
    training = made(
        model, section(), fused=fused, reference="evaluating" if changed else "adapter_disabled"
    )
    assert isinstance(training.method, DirectPreferenceOptimization)
    torch.testing.assert_close(
        training.method._rows.reference.double(), wanted, rtol=1e-5, atol=1e-4
    )
    assert model.training
    assert any(parameter.requires_grad for parameter in model.parameters())
    if changed:  # the other way would not do
        loss = CausalLoss(model, CPU, pad_id=0, longest=64, fused=fused)
        with loss.adapter_disabled():
            wrong = log_probabilities(TRAIN, loss, units=8, rows_per_unit=2, device=CPU.device)
        assert float((wrong.double() - wanted).abs().max()) > 0.01


def test_the_adapter_is_back_after_the_reference(tiny_model: Path) -> None:
    model = adapted(tiny_model, effect=0.1)
    loss = CausalLoss(model, CPU, pad_id=0, longest=64)
    with loss.evaluating():
        before = log_probabilities(TRAIN, loss, units=3, rows_per_unit=2, device=CPU.device)
    with loss.adapter_disabled():
        without = log_probabilities(TRAIN, loss, units=3, rows_per_unit=2, device=CPU.device)
    with pytest.raises(RuntimeError, match="on purpose"), loss.adapter_disabled():
        raise RuntimeError("on purpose")
    with loss.evaluating():
        after = log_probabilities(TRAIN, loss, units=8, rows_per_unit=2, device=CPU.device)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-4)
    assert float((without - before).abs().min()) > 1e-3
    assert log_probabilities((), loss, units=8, rows_per_unit=2, device=CPU.device).shape == (0,)


def test_values_of_rows_become_pairs() -> None:
    pairs = Pairs.of_rows(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4), torch.ones(4))
    assert pairs.chosen.tolist() == [1.0, 3.0]
    assert pairs.rejected.tolist() == [2.0, 4.0]
    assert sort_units([9, 1, 2, 3], 2) == [2, 3, 0, 1]
    assert PairTotals.of_counts([5, 6, 7, 8]) == PairTotals(2, 12)


def test_what_is_measured() -> None:
    pairs = Pairs.of_rows(
        torch.tensor([-1.0, -2.0, -3.0, -3.0]),
        torch.tensor([-2.0, -2.0, -2.0, -4.0]),
        torch.ones(4),
    )
    found = dict(zip(MEASURED, measure(pairs, 0.5).tolist(), strict=True))
    assert found == {
        "rewards_chosen": 0.0, "rewards_rejected": 0.5, "rewards_accuracies": 1.0, "rewards_margins": -0.5,
        "logps_chosen": -4.0, "logps_rejected": -5.0,
    }  # fmt: skip


def test_far_from_the_reference_the_loss_stays_a_number() -> None:
    policy = torch.tensor([-9000.0, -1.0, -1.0, -9000.0], requires_grad=True)
    pairs = Pairs.of_rows(policy, torch.full((4,), -50.0), torch.full((4,), 20.0))
    for name in TERMS:
        settings = section(loss_type=name, **({"label_smoothing": 0.1} if name == "robust" else {}))
        loss = loss_part(pairs, settings, PairTotals(2, 40))
        (gradient,) = torch.autograd.grad(loss, policy)
        assert math.isfinite(loss.item())
        assert bool(gradient.isfinite().all())


def test_training_widens_the_margin_on_pairs_that_were_held_out(tiny_model: Path) -> None:
    """What is to be learned: answers in words of one kind are preferred."""
    generator = torch.Generator().manual_seed(1)

    def side(prompt: list[int], words: int) -> Example:
        answer = torch.randint(words, words + 20, (6,), generator=generator).tolist()
        return Example(array("i", prompt + answer), bytes([0] * len(prompt) + [1] * 6), stops=True)

    rows: list[Example] = []
    for _ in range(40):
        prompt = torch.randint(10, 500, (5,), generator=generator).tolist()
        rows += [side(prompt, 100), side(prompt, 300)]
    model = adapted(tiny_model)
    settings = section(max_steps=30, eval_steps=10, beta=0.1, logging_steps=10, learning_rate=1e-2)
    loss = CausalLoss(model, CPU, pad_id=0, longest=64)
    data = Dataset(tuple(rows[:64]), tuple(rows[64:]), RowCounts(32, 8, 0, 0), ())
    method = DirectPreferenceOptimization(
        MethodInputs(data, loss, settings, CPU.device, reference=loss.adapter_disabled)
    )
    policy = PlainStepPolicy(model, method, data.train, settings)
    seen: list[TrainingEvent] = []
    outcome = Trainer(model, method, policy, settings, report=seen.append).run()
    margins = values_of(seen, "eval_rewards_margins")
    assert list(margins) == [0, 10, 20, 30]
    assert margins[0] == pytest.approx(0.0, abs=1e-5)
    assert margins[30] > 0.5
    assert outcome.pairs["eval_rewards_margins"] == margins[30]
    assert outcome.pairs["eval_rewards_accuracies"] >= 0.75
    assert values_of(seen, "eval_loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert outcome.eval_loss_after is not None
    assert outcome.eval_loss_after < math.log(2) - 0.1
    assert values_of(seen, "rewards_margins")[30] > values_of(seen, "rewards_margins")[10] > 0
    logged = next(m.values for m in seen if isinstance(m, MetricsMeasured) and "loss" in m.values)
    assert set(MEASURED) <= set(logged)


def test_logged_values_are_means_over_all_pairs_since_the_last_log(tiny_model: Path) -> None:
    """At a learning rate of next to nothing the policy stays what it is."""
    seen: list[TrainingEvent] = []
    model = adapted(tiny_model, effect=0.0)
    settings = section(
        max_steps=4, logging_steps=3, per_device_train_batch_size=2, learning_rate=1e-12
    )
    training = made(model, settings, seen.append)
    disturb(model, 0.05)
    outcome = training.run()
    assert isinstance(training.method, DirectPreferenceOptimization)
    reference = training.method._rows.reference
    policy = log_probabilities(
        TRAIN, training.method._loss, units=8, rows_per_unit=2, device=CPU.device
    ).detach()
    batches = [pair for units in training.policy.plan.steps() for pair in units]
    rewards = BETA * (policy - reference)
    for name, side in (("rewards_chosen", 0), ("rewards_rejected", 1)):
        first = torch.stack([rewards[2 * pair + side] for pair in batches[:6]]).mean().item()
        last = torch.stack([rewards[2 * pair + side] for pair in batches[6:]]).mean().item()
        assert values_of(seen, name) == {
            3: pytest.approx(first, rel=1e-3),
            4: pytest.approx(last, rel=1e-3),
        }
    losses = values_of(seen, "loss")
    assert outcome.train_loss == pytest.approx((3 * losses[3] + losses[4]) / 4, rel=1e-6)
    assert outcome.trained_tokens == sum(example.targets for example in TRAIN)


def test_accumulated_micro_batches_make_the_same_step_as_one_batch(tiny_model: Path) -> None:
    results = []
    for size, accumulation in ((8, 1), (3, 3), (1, 8)):
        seen: list[TrainingEvent] = []
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        model = adapted(tiny_model)
        training = made(model, section(**options, loss_type=("ipo", "sft")), seen.append, held=())
        outcome = training.run()
        results.append(
            (outcome.train_loss, values_of(seen, "grad_norm")[1], outcome.trained_tokens)
        )
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"gradient_checkpointing": True}, {"loss_type": ("sigmoid", "sft")}], ids=str
)
@pytest.mark.parametrize(
    "lora", [{}, {"lora_dropout": 0.3}, {"init_lora_weights": "pissa"}], ids=str
)
def test_a_run_that_goes_on_from_its_state_ends_as_if_it_had_never_stopped(
    tiny_model: Path, options: dict[str, Any], lora: dict[str, Any]
) -> None:
    settings = section(**{"max_steps": 7, "per_device_train_batch_size": 3, **options})
    reference = "evaluating" if "init_lora_weights" in lora else "adapter_disabled"
    states: list[TrainState] = []

    def keep(message: TrainingEvent) -> None:
        if isinstance(message, StepCompleted) and message.step == 4:
            states.append(copy.deepcopy(training.state()))

    whole = adapted(tiny_model, **lora)
    training = made(whole, settings, keep, reference=reference)
    expected = training.run()
    second = adapted(tiny_model, **lora)
    resumed = made(second, settings, reference=reference)
    torch.manual_seed(99)
    resumed.restore(states[0])
    outcome = resumed.run()
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (outcome.train_loss, outcome.pairs) == (expected.train_loss, expected.pairs)
    assert outcome.eval_loss_after == expected.eval_loss_after


def test_what_is_logged_behind_a_state_is_what_would_have_been_logged(tiny_model: Path) -> None:
    settings = section(max_steps=6, logging_steps=4, per_device_train_batch_size=3)
    states: list[TrainState] = []
    logged: list[list[TrainingEvent]] = [[], []]

    def keep(message: TrainingEvent) -> None:
        logged[0].append(message)
        if isinstance(message, StepCompleted) and message.step == 3:
            states.append(copy.deepcopy(training.state()))

    training = made(adapted(tiny_model), settings, keep)
    training.run()
    resumed = made(adapted(tiny_model), settings, logged[1].append)
    resumed.restore(states[0])
    resumed.run()
    for name in ("loss", *MEASURED):
        assert values_of(logged[1], name) == values_of(logged[0], name)
        assert list(values_of(logged[1], name)) == [4, 6]


def test_a_run_that_goes_on_from_its_end_still_measures(tiny_model: Path) -> None:
    training = made(adapted(tiny_model, effect=0.1), section())
    assert training.method.evaluation.extra == {}
    assert training.method.evaluation.measured()["eval_rewards_margins"] != 0.0


def test_with_the_best_adapter_come_its_own_measurements(tiny_model: Path) -> None:
    seen: list[TrainingEvent] = []
    settings = section(
        max_steps=5,
        eval_steps=1,
        learning_rate=0.3,
        load_best_model_at_end=True,
        max_grad_norm=100.0,
    )
    outcome = made(adapted(tiny_model), settings, seen.append).run()
    losses = values_of(seen, "eval_loss")
    best = min(losses, key=losses.__getitem__)
    assert best < 5, "the rate is meant to be too high"
    assert outcome.pairs["eval_rewards_margins"] == values_of(seen, "eval_rewards_margins")[best]


_WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}


class NothingWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on operations that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in _WAITS, f"{func} waits"
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_back_from_the_device(tiny_model: Path) -> None:
    training = made(adapted(tiny_model), section(max_steps=3), held=())
    assert isinstance(training.method, DirectPreferenceOptimization)
    training.method._loss._fused.share_prefixes = False  # type: ignore[union-attr]  # a CPU's own
    step = next(training.policy.steps(0))
    with NothingWaits():  # type: ignore[no-untyped-call]
        norm = training.update(training.policy.compute_gradients(step, 1, ()), step)
    assert math.isfinite(norm.item())
    with pytest.raises(AssertionError, match="waits"), NothingWaits():  # type: ignore[no-untyped-call]
        norm.item()


def test_sums_over_rows_are_those_of_the_rows() -> None:
    ordered = TokenStore(TRAIN, CPU.device).reorder([5, 2, 9])
    batch = ordered.batch(slice(0, 3))
    values = torch.arange(float(len(batch.targets)))
    parts = torch.split(values, [TRAIN[row].targets for row in (5, 2, 9)])
    assert batch.sum_by_row(values).tolist() == [part.sum().item() for part in parts]
    assert ordered.rows.tolist() == [5, 2, 9]
