"""Losses and gradients against plain PyTorch, and the loop's promises, on a tiny model."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec, LoraSection, TrainSection
from trainer.worker.dataset import Dataset, RowCounts
from trainer.worker.encode import Example
from trainer.worker.evaluation import Evaluation
from trainer.worker.loop import Outcome, Training
from trainer.worker.loss import CausalLoss
from trainer.worker.model import Precision, attach_adapter
from trainer.worker.protocol import Message, Metrics, Progress

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)


def example(length: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 500, (length,), generator=generator).tolist()
    return Example(array("i", ids), bytes([0] * (length // 2) + [1] * (length - length // 2)), stops=True)


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


def train(model: Any, report: Callable[[Message], None] = lambda _message: None, **section: Any) -> Outcome:
    held = EXAMPLES[8:] if section.pop("held_out", True) else ()
    data = Dataset(EXAMPLES[:8], held, RowCounts(8, len(held), 0, 0), ())
    loss = CausalLoss(model, CPU, pad_id=0, longest=64)
    defaults = {"learning_rate": 0.01, "per_device_train_batch_size": 8, "max_steps": 1, "seed": 5}
    return Training(model, loss, data, TrainSection(**{**defaults, **section}), report=report).run()


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_accumulated_micro_batches_make_the_same_step_as_one_batch(tiny_model: Path) -> None:
    results = []
    for size, accumulation in ((8, 1), (3, 3), (1, 8)):
        torch.manual_seed(3)
        model = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4))
        seen: list[Message] = []
        outcome = train(
            model,
            seen.append,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            held_out=False,
        )
        (norm,) = [message.values["grad_norm"] for message in seen if isinstance(message, Metrics)]
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
    seen: list[Message] = []
    train(model, seen.append, max_steps=5, logging_steps=2, eval_steps=2)
    progress = [message for message in seen if isinstance(message, Progress)]
    assert [(message.step, message.total_steps) for message in progress] == [(step, 5) for step in range(1, 6)]
    assert progress[-1].eta_seconds == 0
    metrics = [message for message in seen if isinstance(message, Metrics)]
    assert [message.step for message in metrics if "loss" in message.values] == [2, 4, 5]
    assert [message.step for message in metrics if "eval_loss" in message.values] == [0, 2, 4, 5]
    rates = [message.values["learning_rate"] for message in metrics if "loss" in message.values]
    assert rates == sorted(rates, reverse=True)
    assert all(math.isfinite(value) for message in metrics for value in message.values.values())


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_divergence_is_an_error_even_between_logged_steps(model: Any, logging_steps: int) -> None:
    weight = next(p for name, p in model.named_parameters() if "lora_A" in name)
    with torch.no_grad():
        weight.fill_(3e38)  # overflows in the forward pass
    with pytest.raises(JobError) as caught:
        train(model, max_steps=6, logging_steps=logging_steps, held_out=False)
    assert caught.value.code is ErrorCode.TRAINING_DIVERGED


def test_running_out_of_memory_has_its_code(
    model: Any, monkeypatch: pytest.MonkeyPatch, make_spec: Callable[..., JobSpec]
) -> None:
    from trainer.worker.model import raise_if_out_of_memory

    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ):
        with pytest.raises(JobError) as caught:
            raise_if_out_of_memory(error)
        assert caught.value.code is ErrorCode.OUT_OF_MEMORY
    raise_if_out_of_memory(RuntimeError("something else"))
