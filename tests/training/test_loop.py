"""Losses and gradients against plain PyTorch, and the loop's promises, on a tiny model."""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset, RowCounts
from trainer.errors import ErrorCode, JobError
from trainer.spec import LoraSection, TrainSection
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Precision
from trainer.training.evaluation import Evaluation
from trainer.training.events import MetricsMeasured, StepCompleted, TrainingEvent
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import MethodInputs
from trainer.training.methods.sft import SupervisedFineTuning
from trainer.training.out_of_memory import raise_if_out_of_memory
from trainer.training.progress import TrainingOutcome, TrainState
from trainer.training.step_policy import PlainStepPolicy
from trainer.training.token_store import Batch

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)


def example(length: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 500, (length,), generator=generator).tolist()
    return Example(
        array("i", ids), bytes([0] * (length // 2) + [1] * (length - length // 2)), stops=True
    )


EXAMPLES = tuple(example(6 + 3 * number, number) for number in range(10))


@pytest.fixture
def model(tiny_model: Path) -> Any:
    torch.manual_seed(3)
    return attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4))


def reference(model: Any, examples: tuple[Example, ...]) -> list[torch.Tensor]:
    """Row by row, all logits, no padding: the losses of all trained tokens."""
    losses = []
    for item in examples:
        ids = torch.tensor([list(item.ids)])
        logits = model(input_ids=ids).logits[0, :-1]
        every = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses += [every[position - 1] for position in range(item.length) if item.trained[position]]
    return losses


def made(
    model: Any,
    report: Callable[[TrainingEvent], None] = lambda _message: None,
    *,
    loss: CausalLoss | None = None,
    bins: list[list[int]] | None = None,
    held_out: bool = True,
    **section: Any,
) -> Trainer:
    held = EXAMPLES[8:] if held_out else ()
    data = Dataset(EXAMPLES[:8], held, RowCounts(8, len(held), 0, 0), ())
    defaults = {"learning_rate": 0.01, "per_device_train_batch_size": 8, "max_steps": 1, "seed": 5}
    settings = TrainSection(**{**defaults, **section})
    loss = loss or CausalLoss(
        model, CPU, pad_id=0, longest=64, checkpointing=settings.gradient_checkpointing,
        neftune_alpha=settings.neftune_noise_alpha,
    )  # fmt: skip
    method = SupervisedFineTuning(MethodInputs(data, loss, settings, CPU.device))
    method.units = bins or method.units
    return Trainer(
        model, method, PlainStepPolicy(model, method, data.train, settings), settings, report=report
    )


def train(
    model: Any, report: Callable[[TrainingEvent], None] = lambda _message: None, **options: Any
) -> TrainingOutcome:
    return made(model, report, **options).run()


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_accumulated_micro_batches_make_the_same_step_as_one_batch(tiny_model: Path) -> None:
    results = []
    for size, accumulation in ((8, 1), (3, 3), (1, 8)):
        torch.manual_seed(3)
        model = attach_adapter(
            AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4)
        )
        seen: list[TrainingEvent] = []
        outcome = train(
            model,
            seen.append,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            held_out=False,
        )
        (norm,) = [
            message.values["grad_norm"] for message in seen if isinstance(message, MetricsMeasured)
        ]
        results.append((outcome.train_loss, norm, outcome.trained_tokens))
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)


def test_the_first_logged_loss_is_the_models_loss(model: Any) -> None:
    expected = torch.stack(reference(model, EXAMPLES[:8])).mean().item()
    assert train(model).train_loss == pytest.approx(expected, rel=1e-5)


def test_only_the_adapter_changes(model: Any) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, max_steps=2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= {name for name in before if "lora_" in name}


def test_training_lowers_the_loss_it_is_trained_on(model: Any) -> None:
    outcome = train(model, max_steps=30, held_out=False)
    assert (outcome.eval_loss_before, outcome.eval_loss_after) == (None, None)
    after = Evaluation(
        EXAMPLES[:8], CausalLoss(model, CPU, pad_id=0, longest=64), rows=8, device=CPU.device
    ).loss()
    assert after is not None
    assert after < 0.7 * outcome.train_loss


def test_what_is_reported_and_when(model: Any) -> None:
    seen: list[TrainingEvent] = []
    train(model, seen.append, max_steps=5, logging_steps=2, eval_steps=2)
    progress = [message for message in seen if isinstance(message, StepCompleted)]
    assert [(message.step, message.total_steps) for message in progress] == [
        (step, 5) for step in range(1, 6)
    ]
    metrics = [message for message in seen if isinstance(message, MetricsMeasured)]
    assert [message.step for message in metrics if "loss" in message.values] == [2, 4, 5]
    assert [message.step for message in metrics if "eval_loss" in message.values] == [0, 2, 4, 5]
    rates = [message.values["learning_rate"] for message in metrics if "loss" in message.values]
    assert rates == sorted(rates, reverse=True)
    assert all(math.isfinite(value) for message in metrics for value in message.values.values())


def eval_losses(messages: list[TrainingEvent]) -> dict[int, float]:
    return {
        m.step: m.values["eval_loss"]
        for m in messages
        if isinstance(m, MetricsMeasured) and "eval_loss" in m.values
    }


def test_training_stops_where_evaluations_bring_nothing_more(model: Any) -> None:
    seen: list[TrainingEvent] = []
    stopping = {"eval_steps": 1, "early_stopping_patience": 2, "early_stopping_threshold": 100.0}
    outcome = train(model, seen.append, max_steps=6, **stopping)
    assert outcome.steps == 2
    assert list(eval_losses(seen)) == [0, 1, 2]
    assert outcome.eval_loss_after == eval_losses(seen)[2]
    assert outcome.warnings == (
        "stopped after step 2 of 6: 2 evaluations brought no better held-out loss",
    )


def test_patience_starts_anew_with_each_better_evaluation(model: Any) -> None:
    outcome = train(
        model, max_steps=4, eval_steps=1, early_stopping_patience=1, learning_rate=0.003
    )
    assert outcome.steps == 4


def test_the_best_adapter_can_be_taken_in_place_of_the_last(model: Any) -> None:
    seen: list[TrainingEvent] = []
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def report(message: TrainingEvent) -> None:
        seen.append(message)
        if isinstance(message, MetricsMeasured) and "eval_loss" in message.values:
            kept[message.step] = adapter_of(model)

    outcome = train(
        model,
        report,
        max_steps=5,
        eval_steps=1,
        learning_rate=0.3,
        load_best_model_at_end=True,
        max_grad_norm=100.0,
    )
    losses = eval_losses(seen)
    best = min(losses, key=losses.__getitem__)
    assert best < 5, "the rate is meant to be too high"
    assert outcome.eval_loss_after == losses[best]
    assert f"that of step {best}" in outcome.warnings[0]
    assert all(torch.equal(value, kept[best][name]) for name, value in adapter_of(model).items())


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_divergence_is_an_error_even_between_logged_steps(model: Any, logging_steps: int) -> None:
    weight = next(p for name, p in model.named_parameters() if "lora_A" in name)
    with torch.no_grad():
        weight.fill_(3e38)  # overflows in the forward pass
    with pytest.raises(JobError) as caught:
        train(model, max_steps=6, logging_steps=logging_steps, held_out=False)
    assert caught.value.code is ErrorCode.TRAINING_DIVERGED


def test_after_a_divergence_the_model_has_the_last_sound_adapter(model: Any) -> None:
    sound: list[dict[str, torch.Tensor]] = []
    training = made(model, lambda _message: None, max_steps=9, learning_rate=1e-3)

    def sabotage(message: TrainingEvent) -> None:
        if isinstance(message, MetricsMeasured) and "loss" in message.values:
            sound.append(adapter_of(model))
        if isinstance(message, StepCompleted) and message.step == 3:
            with torch.no_grad():
                next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(torch.nan)

    training._report = sabotage
    with pytest.raises(JobError, match="at step 3; last finite adapter: that of step 2"):
        training.run()
    assert training.last_finite_step == 2
    assert len(sound) == 2
    broken = next(name for name in sound[1] if "lora_B" in name)
    assert torch.equal(adapter_of(model)[broken], sound[1][broken])


class ShortOfMemory(CausalLoss):
    """Takes a few tokens at once, no more."""

    def __init__(self, *arguments: Any, room: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.room = room
        self.failures = 0

    def total_loss(self, batch: Batch) -> torch.Tensor:
        if len(batch.input_ids) > self.room:
            self.failures += 1
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            )
        return super().total_loss(batch)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_where_memory_is_short_the_same_step_is_made_of_smaller_pieces(
    tiny_model: Path, dropout: float
) -> None:
    results = []
    for room in (10_000, 40):
        torch.manual_seed(3)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        model = attach_adapter(base, LoraSection(lora_r=4, lora_dropout=dropout))
        torch.manual_seed(6)
        loss = ShortOfMemory(model, CPU, pad_id=0, longest=64, room=room)
        outcome = made(model, loss=loss, max_steps=3, held_out=False).run()
        results.append((outcome, adapter_of(model), loss.failures))
    (ample, wide, none), (tight, narrow, failures) = results
    assert (none, ample.warnings) == (0, ())
    assert failures > 0
    assert "memory did not suffice" in "".join(tight.warnings)
    assert len(tight.warnings) == 1
    if not dropout:
        assert tight.train_loss == pytest.approx(ample.train_loss, rel=1e-4)
        for name, value in narrow.items():
            torch.testing.assert_close(value, wide[name], rtol=1e-2, atol=1e-4)


def test_memory_for_not_even_one_row_is_an_error(model: Any) -> None:
    loss = ShortOfMemory(model, CPU, pad_id=0, longest=64, room=5)
    with pytest.raises(RuntimeError, match="allocate memory"):
        made(model, loss=loss, max_steps=1, held_out=False).run()


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"optim": "sgd", "learning_rate": 0.1},
        {"loraplus_lr_ratio": 4.0},
        {"optim": "adafactor"},
        {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-4},
            "warmup_steps": 2,
        },
        {"neftune_noise_alpha": 5.0},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_that_goes_on_from_its_state_ends_as_if_it_had_never_stopped(
    tiny_model: Path, section: dict[str, Any], dropout: float
) -> None:
    def fresh() -> Any:
        torch.manual_seed(3)
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        model = attach_adapter(base, LoraSection(lora_r=4, lora_dropout=dropout))
        torch.manual_seed(8)
        return model

    options = {"max_steps": 7, "per_device_train_batch_size": 3, "held_out": False, **section}
    states: list[TrainState] = []
    whole = fresh()

    def keep(message: TrainingEvent) -> None:
        if isinstance(message, StepCompleted) and message.step == 4:
            states.append(copy.deepcopy(training.state()))

    training = made(whole, keep, **options)
    expected = training.run()
    torch.manual_seed(99)
    second = fresh()
    resumed = made(second, **options)
    torch.manual_seed(99)
    resumed.restore(states[0])
    outcome = resumed.run()
    assert all(
        torch.equal(value, adapter_of(second)[name]) for name, value in adapter_of(whole).items()
    )
    assert outcome.train_loss == expected.train_loss
    assert outcome.trained_tokens == expected.trained_tokens


def test_a_state_that_could_not_be_read_again_is_not_saved(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of a method, such as rewards, may be infinite while the loss is finite: JSON has no such numbers."""
    trainer = made(model)
    trainer.run()
    assert trainer.resumable_state() is not None
    monkeypatch.setattr(trainer.method, "state", lambda: (1.0, math.inf))
    assert trainer.resumable_state() is None


def test_the_same_seed_gives_the_same_bits(tiny_model: Path) -> None:
    adapters = []
    for _ in range(2):
        torch.manual_seed(3)
        model = attach_adapter(
            AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4)
        )
        train(model, max_steps=5, per_device_train_batch_size=3)
        adapters.append(adapter_of(model))
    assert all(torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())


@pytest.mark.parametrize("fused", [True, False])
def test_bins_make_the_same_step_as_their_rows(tiny_model: Path, fused: bool) -> None:
    results = []
    for bins, size in ((None, 8), ([[0, 7], [1, 6], [2, 5], [3, 4]], 4)):
        torch.manual_seed(3)
        model = attach_adapter(
            AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4)
        )
        loss = CausalLoss(model, CPU, pad_id=0, longest=64, fused=fused)
        training = made(
            model,
            loss=loss,
            bins=bins,
            held_out=False,
            max_steps=2,
            per_device_train_batch_size=size,
        )
        results.append((training.run(), adapter_of(model)))
    (one, first), (other, second) = results
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-6)
    assert (one.trained_tokens, one.input_tokens) == (other.trained_tokens, other.input_tokens)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-5)


_WAITS = {
    torch.ops.aten._local_scalar_dense.default: "reads a number",
    torch.ops.aten.nonzero.default: "has a size that only the device knows",
    torch.ops.aten.masked_select.default: "has a size that only the device knows",
    torch.ops.aten.is_nonzero.default: "reads a number",
    torch.ops.aten.equal.default: "reads a number",
}


class NothingWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on operations that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITS:
            raise AssertionError(f"{func} {_WAITS[func]}")
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_back_from_the_device(model: Any) -> None:
    """What holds on a CPU holds for the same calls on a GPU; `tests/gpu` looks at the copies themselves."""
    loss = CausalLoss(model, CPU, pad_id=0, longest=64)
    loss._fused.share_prefixes = False  # type: ignore[union-attr]  # a CPU's business only
    training = made(model, loss=loss, max_steps=6, held_out=False)
    step = next(training.policy.steps(0))
    with NothingWaits():  # type: ignore[no-untyped-call]
        norm = training.update(training.policy.compute_gradients(step, 1, ()), step)
    assert math.isfinite(norm.item())
    with pytest.raises(AssertionError, match="reads a number"), NothingWaits():  # type: ignore[no-untyped-call]
        norm.item()


def test_running_out_of_memory_has_its_code() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
    ):
        with pytest.raises(JobError) as caught:
            raise_if_out_of_memory(error)
        assert caught.value.code is ErrorCode.OUT_OF_MEMORY
    raise_if_out_of_memory(RuntimeError("something else"))
