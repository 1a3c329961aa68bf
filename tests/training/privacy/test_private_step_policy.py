"""Differentially private training on a tiny model: what Opacus is given, and what comes out of it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opacus", reason="the extra `privacy` is not installed")

import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from transformers import AutoModelForCausalLM

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset, RowCounts
from trainer.errors import ErrorCode, JobError
from trainer.spec import LoraSection, PrivacySection, TrainSection
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Precision
from trainer.training.events import MetricsMeasured, TrainingEvent
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import MethodInputs
from trainer.training.methods.sft import SupervisedFineTuning
from trainer.training.privacy.accounting import (
    Mechanism,
    new_accountant,
    plan_mechanism,
    require_within,
    spent,
)
from trainer.training.privacy.dp_optimizer import PrivateOptimizer
from trainer.training.privacy.memorisation_audit import row_losses
from trainer.training.privacy.per_example_gradients import RowGradients, row_means
from trainer.training.privacy.privacy_findings import DifferentialPrivacy
from trainer.training.privacy.private_step_policy import PrivateStepPolicy
from trainer.training.privacy.randomness import SecretRandom
from trainer.training.token_store import single_batch

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)
COARSE = Precision(torch.device("cpu"), torch.float32, autocast=True)
BUDGET = PrivacySection(target_epsilon=3.0, target_delta=1e-5)
NOISE = PrivacySection(noise_multiplier=1.25, target_delta=1e-5)


def example(length: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 500, (length,), generator=generator).tolist()
    return Example(
        array("i", ids), bytes([0] * (length // 2) + [1] * (length - length // 2)), stops=True
    )


EXAMPLES = tuple(example(6 + 3 * (number % 9), number) for number in range(24))


def fresh(tiny_model: Path, **lora: Any) -> Any:
    torch.manual_seed(3)
    return attach_adapter(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4, **lora)
    )


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return fresh(tiny_model)


def loss_of(model: Any, precision: Precision = CPU) -> CausalLoss:
    return CausalLoss(model, precision, pad_id=0, longest=64, fused=False)


class PrivateRun(Trainer):
    """A trainer whose policy is known to be private."""

    policy: PrivateStepPolicy

    def findings(self) -> DifferentialPrivacy:
        """What was spent."""
        spent = self.privacy_spent()
        assert spent is not None
        return spent


def made(
    model: Any,
    privacy: PrivacySection = NOISE,
    report: Callable[[TrainingEvent], None] = lambda _message: None,
    *,
    random: SecretRandom | None = None,
    rows: tuple[Example, ...] = EXAMPLES[:20],
    precision: Precision = CPU,
    **section: Any,
) -> PrivateRun:
    data = Dataset(rows, EXAMPLES[20:], RowCounts(len(rows), 4, 0, 0), ())
    settings = TrainSection(**{"learning_rate": 0.01, "max_steps": 5, "seed": 5, **section})
    loss = loss_of(model, precision)
    policy = PrivateStepPolicy(model, loss, rows, settings, privacy, max_length=64, random=random)
    method = SupervisedFineTuning(MethodInputs(data, loss, settings, CPU.device))
    return PrivateRun(model, method, policy, settings, report=report)


def adapter(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters() if p.requires_grad])


# what is spent


@pytest.mark.parametrize(("kind", "accountant"), [("prv", PRVAccountant), ("rdp", RDPAccountant)])
@pytest.mark.filterwarnings("ignore")
def test_epsilon_is_what_the_accountant_says_of_the_steps_taken(
    model: Any, kind: str, accountant: Any
) -> None:
    training = made(model, BUDGET.model_copy(update={"accountant": kind}))
    assert training.run().steps == 5
    found = training.findings()
    theirs = accountant()
    theirs.history = [(found.noise_multiplier, 4 / 20, 5)]
    assert found.epsilon == pytest.approx(theirs.get_epsilon(1e-5))
    assert 2.9 < found.epsilon <= 3.0
    assert (found.sample_rate, found.expected_rows, found.rows, found.steps) == (0.2, 4, 20, 5)
    assert (found.delta, found.max_grad_norm, found.unit) == (1e-5, 1.0, "row")


@pytest.mark.filterwarnings("ignore")
def test_another_learning_rate_of_the_matrices_b_spends_nothing_more(model: Any) -> None:
    training = made(model, loraplus_lr_ratio=8.0, max_steps=2)
    training.run()
    others, matrices_b = training.policy.optimizer.param_groups
    assert matrices_b["lr"] == pytest.approx(8 * others["lr"])
    accountant = new_accountant("prv")
    accountant.history = [(training.findings().noise_multiplier, 4 / 20, 2)]
    assert training.findings().epsilon == pytest.approx(
        spent(accountant, training.findings().delta)
    )


def test_with_every_row_in_every_step_it_is_the_gaussian_mechanism() -> None:
    """T releases cost what one with 1/√T of the noise does (Balle and Wang, arXiv:1805.06530, theorem 8)."""
    accountant = new_accountant("prv")
    accountant.history = [(4.0, 1.0, 9)]
    epsilon, mu = spent(accountant, 1e-5), 3 / 4

    def normal(value: float) -> float:
        return (1 + math.erf(value / math.sqrt(2))) / 2

    def delta(of: float) -> float:
        return normal(mu / 2 - of / mu) - math.exp(of) * normal(-mu / 2 - of / mu)

    assert delta(epsilon) <= 1e-5
    assert delta(epsilon - 0.05) > 1e-5


def test_noise_that_is_given_is_taken_and_its_epsilon_reported(model: Any) -> None:
    training = made(model, PrivacySection(noise_multiplier=1.5, target_delta=1e-5), max_steps=2)
    training.run()
    assert training.findings().noise_multiplier == 1.5
    assert 0 < training.findings().epsilon < 10


def test_a_budget_that_cannot_be_kept_is_refused_before_training(model: Any) -> None:
    tight = PrivacySection(target_epsilon=0.05, target_delta=1e-12, accountant="rdp")
    with pytest.raises(JobError) as error:
        made(model, tight.model_copy(update={"target_epsilon": 0.001}))
    assert error.value.code is ErrorCode.PRIVACY_NOT_MET


def test_a_delta_that_lets_a_row_through_is_refused(model: Any) -> None:
    with pytest.raises(JobError, match="target_delta") as error:
        made(model, PrivacySection(target_epsilon=3.0, target_delta=0.05))
    assert error.value.code is ErrorCode.PRIVACY_NOT_MET


def test_more_spent_than_allowed_is_an_error() -> None:
    require_within(3.0, BUDGET)
    with pytest.raises(JobError) as error:
        require_within(3.0001, BUDGET)
    assert error.value.code is ErrorCode.PRIVACY_NOT_MET


def test_steps_that_the_accountant_did_not_see_are_an_error(model: Any) -> None:
    training = made(model, max_steps=3)
    training.run()
    training.policy._accountant.history = [(training.policy.mechanism.noise_multiplier, 0.2, 2)]
    with pytest.raises(JobError) as error:
        training.findings()
    assert error.value.code is ErrorCode.PRIVACY_UNPROVEN


def test_a_run_that_ended_early_is_an_error(model: Any) -> None:
    with pytest.raises(JobError):
        made(model).findings()


# sampling


class Watched(SecretRandom):
    """Remembers what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[list[int]] = []

    def choose(self, count: int, rate: float) -> list[int]:
        self.drawn.append(super().choose(count, rate))
        return self.drawn[-1]


def test_rows_are_drawn_independently_with_the_rate_that_is_accounted_for() -> None:
    random, rate, rows, steps = SecretRandom(), 0.05, 200, 2000
    drawn = torch.zeros(steps, rows)
    for step in range(steps):
        drawn[step, random.choose(rows, rate)] = 1
    spread = math.sqrt(rate * (1 - rate))
    assert float(drawn.mean()) == pytest.approx(rate, abs=6 * spread / math.sqrt(steps * rows))
    assert float((drawn.mean(0) - rate).abs().max()) < 6 * spread / math.sqrt(steps)
    sizes = drawn.sum(1)
    assert float(sizes.var()) == pytest.approx(rows * spread**2, rel=0.25), (
        "sizes spread as a binomial does"
    )
    pairs = (drawn[:, 0::2] * drawn[:, 1::2]).mean()
    assert float(pairs) == pytest.approx(rate**2, abs=0.0006), "neighbours are drawn independently"
    assert random.choose(7, 1.0) == list(range(7))
    assert random.choose(1000, 1e-18) == []


def test_the_rows_of_a_run_are_not_those_of_its_seed(tiny_model: Path) -> None:
    drawn = []
    for _ in range(2):
        random = Watched()
        made(fresh(tiny_model), random=random, max_steps=12).run()
        drawn.append(random.drawn)
    assert drawn[0] != drawn[1]
    assert all(len(run) == 12 for run in drawn)


class Empty(SecretRandom):
    def choose(self, count: int, rate: float) -> list[int]:
        return []


def test_a_step_that_draws_no_row_is_a_step_of_noise_alone(model: Any) -> None:
    seen: list[TrainingEvent] = []
    start = adapter(model)
    training = made(
        model, random=Empty(), report=seen.append, optim="sgd", max_steps=2, learning_rate=1.0
    )
    outcome = training.run()
    moved = adapter(model) - start
    # Divided by the expected rows, twice added, rates 1 and 1/2.
    sigma = training.policy.mechanism.noise_multiplier / 4
    assert outcome.trained_tokens == 0
    assert float(moved.std()) == pytest.approx(sigma * math.sqrt(1 + 0.25), rel=0.05)
    assert training.findings().steps == 2
    assert [
        m.values["loss"] for m in seen if isinstance(m, MetricsMeasured) and "loss" in m.values
    ] == [0.0, 0.0]


# clipping and noise


def mechanism(**changes: float) -> Mechanism:
    fields: dict[str, Any] = {
        "rows": 20, "expected_rows": 4, "steps": 5, "noise_multiplier": 1.0, "max_grad_norm": 1.0,
        "delta": 1e-5, "accountant": "prv",
    }  # fmt: skip
    return Mechanism(**{**fields, **changes})


def test_no_row_adds_more_than_the_bound(model: Any) -> None:
    """With the noise taken away, what one row adds is its gradient, cut to the bound."""
    model.train()
    gradients = RowGradients(model, loss_of(model))
    for bound in (1e-3, 0.5, 1e6):
        for row in EXAMPLES[:4]:
            settings = mechanism(max_grad_norm=bound)
            optimizer = PrivateOptimizer(
                torch.optim.SGD(gradients.parameters, lr=0.0), settings, SecretRandom()
            )
            _, norms = gradients.compute(single_batch([row], CPU.device))
            optimizer.clip_and_accumulate()
            added = torch.cat([p.summed_grad.flatten() for p in gradients.parameters]).norm()
            assert float(added.double()) <= bound
            assert float(added) == pytest.approx(min(bound, float(norms[0])), rel=1e-3)
            optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("bound", [1e-3, 0.3, 1.0, 7.7])
def test_a_clipped_row_stays_within_the_bound_in_16_bits_too(bound: float) -> None:
    """Rounded to the parameters' own type, about half of all clipped gradients would exceed the bound."""
    parameter: Any = torch.nn.Parameter(torch.zeros(33, 7, dtype=torch.bfloat16))
    settings = mechanism(max_grad_norm=bound)
    optimizer = PrivateOptimizer(torch.optim.SGD([parameter], lr=0.0), settings, SecretRandom())
    generator = torch.Generator().manual_seed(5)
    for _ in range(16):
        parameter.grad_sample = 40 * torch.randn(1, 33, 7, generator=generator)
        optimizer.clip_and_accumulate()
        added = parameter.summed_grad.double().norm()
        assert bound * (1 - 1e-5) <= float(added) <= bound
        optimizer.zero_grad(set_to_none=True)


class Ones(SecretRandom):
    def normal(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.float64, device=device)


def test_the_gradient_is_the_clipped_sum_and_the_noise_over_the_expected_rows(model: Any) -> None:
    """Against gradients of each row from torch alone, cut into pieces or not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    wanted = [torch.zeros_like(p) for p in parameters]
    rows = EXAMPLES[:6]
    for row in rows:
        _, means = row_means(loss_of(model), single_batch([row], CPU.device))
        alone = torch.autograd.grad(means.sum(), parameters)
        norm = torch.cat([part.flatten() for part in alone]).norm()
        for total, part in zip(wanted, alone, strict=True):
            total.add_(part * (0.01 / norm).clamp(max=1.0))
    for size in (6, 4, 1):
        all_rows = type("All", (Ones,), {"choose": lambda _self, _count, _rate: list(range(6))})()
        privacy = PrivacySection(noise_multiplier=0.5, target_delta=1e-5, max_grad_norm=0.01)
        training = made(
            model, privacy, random=all_rows, rows=rows, optim="sgd", learning_rate=1.0, max_steps=1,
            per_device_train_batch_size=size, lr_scheduler_type="constant",
        )  # fmt: skip
        start = adapter(model)
        training.run()
        moved = start - adapter(model)
        expected = torch.cat([total.flatten() + 0.5 * 0.01 for total in wanted]) / size
        assert torch.allclose(moved, expected, atol=2e-6), f"{size} rows at once"
        with torch.no_grad():
            offset = 0
            for parameter in parameters:
                parameter.copy_(start[offset : offset + parameter.numel()].view_as(parameter))
                offset += parameter.numel()


def test_the_noise_is_normal_with_the_deviation_that_is_accounted_for(model: Any) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = PrivateOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        mechanism(noise_multiplier=1.5, max_grad_norm=0.2),
        SecretRandom(),
    )
    draws = []
    for _ in range(8):
        for parameter in parameters:
            parameter.summed_grad = torch.zeros_like(parameter)
        optimizer.add_noise()
        draws.append(torch.cat([p.grad.flatten() for p in parameters]))
    noise = torch.stack(draws) / 0.3
    count = noise.numel()
    assert abs(float(noise.mean())) < 6 / math.sqrt(count)
    assert float(noise.var()) == pytest.approx(1.0, abs=6 * math.sqrt(2 / count))
    assert float((noise**4).mean()) == pytest.approx(3.0, abs=6 * math.sqrt(96 / count))
    assert abs(float((noise[:, 1:] * noise[:, :-1]).mean())) < 6 / math.sqrt(count), (
        "coordinates are independent"
    )
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 6 / math.sqrt(count), (
        "steps are independent"
    )


def test_the_noise_does_not_follow_the_public_seed(tiny_model: Path) -> None:
    """Two runs of one spec, with one seed and the same rows in each step, differ by their noise."""
    ends = []
    for _ in range(2):
        everything = type(
            "All", (SecretRandom,), {"choose": lambda _self, count, _rate: list(range(count))}
        )()
        model = fresh(tiny_model)
        training = made(
            model, random=everything, optim="sgd", max_steps=1, lr_scheduler_type="constant"
        )
        torch.manual_seed(5)
        training.run()
        ends.append(adapter(model))
    apart = (ends[0] - ends[1]).std() * 4 / 0.01
    assert float(apart) == pytest.approx(
        training.policy.mechanism.noise_multiplier * math.sqrt(2), rel=0.05
    )


def test_a_keystream_is_never_used_twice() -> None:
    keys: list[bytes] = []

    def entropy(size: int) -> bytes:
        keys.append(bytes([len(keys)]) * size)
        return keys[-1]

    random = SecretRandom(entropy)
    first, second = random.words(8), random.words(8)
    assert len(set(keys)) == len(keys) == 2
    assert not set(first) & set(second)
    assert list(SecretRandom(lambda size: b"\x00" * size).words(8)) == list(first)


def test_a_row_without_a_finite_gradient_counts_as_none(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.train()
    loss = loss_of(model)
    each = loss.token_losses
    monkeypatch.setattr(
        loss,
        "token_losses",
        lambda batch: each(batch) * torch.where(batch.logit_positions < 6, torch.inf, 1.0),
    )
    gradients = RowGradients(model, loss)
    _, norms = gradients.compute(single_batch(EXAMPLES[:2], CPU.device))
    assert float(norms[0]) == 0.0
    assert float(norms[1]) > 0.0
    assert all(bool(torch.isfinite(p.grad_sample).all()) for p in gradients.parameters)


# what Opacus would corrupt


def test_in_16_bits_norms_are_taken_in_32(model: Any) -> None:
    model.train()
    gradients = RowGradients(model, loss_of(model, COARSE))
    gradients.compute(single_batch(EXAMPLES[:3], CPU.device))
    assert {p.grad_sample.dtype for p in gradients.parameters} == {torch.float32}


def test_a_run_in_16_bits_is_proved_too(model: Any) -> None:
    training = made(model, precision=COARSE, max_steps=1)
    training.run()
    assert training.findings().steps == 1


def refused(model: Any, **options: Any) -> JobError:
    with pytest.raises(JobError) as error:
        made(model, **options)
    assert error.value.code is ErrorCode.PRIVACY_UNPROVEN
    return error.value


def test_only_linear_layers_may_be_trained(tiny_model: Path) -> None:
    assert "DoraLinearLayer" in str(refused(fresh(tiny_model, use_dora=True)))


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_an_adapter_on_embeddings_is_refused(tiny_model: Path) -> None:
    assert "embed_tokens" in str(refused(fresh(tiny_model, lora_target_modules=("embed_tokens",))))


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_an_adapter_on_the_head_is_refused(tiny_model: Path) -> None:
    assert "lm_head" in str(refused(fresh(tiny_model, lora_target_modules=("q_proj", "lm_head"))))


def test_a_parameter_in_two_places_is_refused(model: Any) -> None:
    layers = [
        module for name, module in model.named_modules() if name.endswith("q_proj.lora_A.default")
    ]
    layers[1].weight = layers[0].weight
    assert "of its own" in str(refused(model))


def test_a_model_that_folds_rows_into_tokens_is_refused(model: Any) -> None:
    """As mixtures of experts do: a layer then sees tokens where Opacus expects rows."""
    layer = next(module for name, module in model.named_modules() if name.endswith("0.mlp.up_proj"))
    forward = layer.forward
    layer.forward = lambda x: forward(x.flatten(0, 1)).view(*x.shape[:2], -1)
    assert "gradient for each row" in str(refused(model))


def test_a_model_in_which_rows_see_one_another_is_refused(model: Any) -> None:
    layer = next(
        module for name, module in model.named_modules() if name.endswith("1.mlp.down_proj")
    )
    forward = layer.forward
    layer.forward = lambda x: forward(x) + 0.1 * x.mean((0, 1), keepdim=True).sum()
    assert "not those of the rows by themselves" in str(refused(model))


def test_a_step_that_changes_nothing_is_an_error(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = made(model)
    monkeypatch.setattr(training.policy._private_optimizer.original_optimizer, "step", lambda: None)
    with pytest.raises(JobError, match="as they were") as error:
        training.run()
    assert error.value.code is ErrorCode.PRIVACY_UNPROVEN


def test_warming_up_from_a_rate_of_0_is_no_error(model: Any) -> None:
    training = made(model, warmup_steps=2, max_steps=4)
    training.run()
    assert training.findings().steps == 4


def test_the_proof_leaves_the_adapter_as_it_was(model: Any) -> None:
    before = adapter(model)
    made(model)
    assert torch.equal(adapter(model), before)


def test_only_the_adapter_changes_and_the_hooks_are_gone(model: Any) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    training = made(model)
    training.run()
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == {name for name in before if "lora_" not in name}
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())
    assert training.last_finite_step == 0, "no adapter goes with a divergence"


def test_it_still_learns_where_the_noise_is_small(model: Any) -> None:
    rows = EXAMPLES[:2] * 8
    privacy = PrivacySection(noise_multiplier=0.3, target_delta=1e-5, max_grad_norm=1.0)
    training = made(
        model, privacy, rows=rows, max_steps=25, per_device_train_batch_size=8, learning_rate=0.02
    )
    before = sum(row_losses(rows[:2], loss_of(model), CPU.device))
    training.run()
    assert sum(row_losses(rows[:2], loss_of(model), CPU.device)) < 0.8 * before


def test_a_forward_pass_between_steps_fails_closed(model: Any) -> None:
    """Opacus counts forward passes: one without a backward pass would shift all that follow."""
    training = made(model)
    row_means(loss_of(model), single_batch(EXAMPLES[:2], CPU.device))
    with pytest.raises(JobError, match="gradient for each row"):
        training.run()


def test_plans_divide_by_the_expected_rows() -> None:
    found = plan_mechanism(
        PrivacySection(noise_multiplier=1.0, target_delta=1e-5), rows=10, expected_rows=10, steps=1
    )
    assert found.sample_rate == 1.0
