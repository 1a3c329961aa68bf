"""What the tests of preference methods share: pairs, a tiny model with an adapter, and a trainer of one method."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from trainer.data.examples.example import Example
from trainer.data.examples.example_set import Dataset, RowCounts
from trainer.spec import LoraSection, TrainSection
from trainer.training.adapter import attach_adapter
from trainer.training.engines.base import Precision
from trainer.training.events import MetricsMeasured, TrainingEvent
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import Method, MethodInputs
from trainer.training.step_policy import PlainStepPolicy

CPU = Precision(torch.device("cpu"), torch.float32, autocast=False)


def answers(number: int) -> tuple[Example, Example]:
    """One prompt, two answers of different lengths; the prompt's length differs from pair to pair."""
    generator = torch.Generator().manual_seed(number)
    prompt = torch.randint(10, 500, (3 + 2 * number,), generator=generator).tolist()
    sides = []
    for length in (4 + number % 5, 3 + 2 * (number % 4)):
        answer = torch.randint(10, 500, (length,), generator=generator).tolist()
        sides.append(
            Example(
                array("i", prompt + answer), bytes([0] * len(prompt) + [1] * length), stops=True
            )
        )
    return sides[0], sides[1]


def examples_of(numbers: Sequence[int]) -> tuple[Example, ...]:
    return tuple(side for number in numbers for side in answers(number))


TRAIN = examples_of(range(8))
HELD = examples_of(range(8, 11))


def adapted(tiny_model: Path, *, effect: float = 0.0, **lora: Any) -> Any:
    """With an adapter that is fresh, or does something."""
    torch.manual_seed(3)
    model = attach_adapter(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraSection(lora_r=4, **lora)
    )
    torch.manual_seed(8)
    if effect:
        disturb(model, effect)
    return model


def disturb(model: Any, effect: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter), alpha=effect)


def pair_section(**leaves: Any) -> TrainSection:
    """One step over all eight pairs."""
    defaults = {"learning_rate": 0.01, "per_device_train_batch_size": 8, "max_steps": 1, "seed": 5}
    return TrainSection(**{**defaults, **leaves})


def pair_trainer(
    method_of: Callable[[MethodInputs], Method],
    model: Any,
    settings: TrainSection,
    report: Callable[[TrainingEvent], None] = lambda _event: None,
    *,
    fused: bool = True,
    held: tuple[Example, ...] = HELD,
) -> Trainer:
    """A trainer over `TRAIN` that evaluates on `held`."""
    loss = CausalLoss(
        model, CPU, pad_id=0, longest=64, fused=fused, checkpointing=settings.gradient_checkpointing
    )
    data = Dataset(TRAIN, held, RowCounts(8, len(held) // 2, 0, 0), ())
    method = method_of(MethodInputs(data, loss, settings, CPU.device))
    return Trainer(
        model, method, PlainStepPolicy(model, method, TRAIN, settings), settings, report=report
    )


def textbook_logps(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Row by row over whole logits in float64, nothing of ours: [rows]."""
    rows = []
    for example in examples:
        ids = torch.tensor([list(example.ids)])
        logs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
        each = logs[torch.arange(len(logs)), ids[0, 1:]]
        rows.append((each * torch.tensor(list(example.trained[1:]))).sum())
    return torch.stack(rows)


def values_of(messages: Sequence[TrainingEvent], name: str) -> dict[int, float]:
    return {
        m.step: m.values[name]
        for m in messages
        if isinstance(m, MetricsMeasured) and name in m.values
    }
