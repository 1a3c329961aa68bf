"""The training loop: from a model with a fresh adapter to a trained one. Reads from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import get_scheduler

from trainer.errors import ErrorCode, JobError
from trainer.spec import TrainSection
from trainer.worker.batches import Plan
from trainer.worker.dataset import Dataset
from trainer.worker.loss import CausalLoss
from trainer.worker.protocol import Message, Metrics, Progress

Report = Callable[[Message], None]
"""Takes what happens during training; called between optimizer steps."""


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        eval_loss_before: loss per token on the held-out rows, before the first step; None where there are none.
        eval_loss_after: the same after the last step.
        train_loss: loss per trained token, over all tokens that were trained on.
        steps: optimizer steps.
        trained_tokens: tokens that the loss was taken on, counted each time.
        input_tokens: tokens that went through the model, without padding.
        train_seconds: time spent in optimizer steps.
        eval_seconds: time spent in evaluations.
    """

    eval_loss_before: float | None
    eval_loss_after: float | None
    train_loss: float
    steps: int
    trained_tokens: int
    input_tokens: int
    train_seconds: float
    eval_seconds: float


class Training:
    """One run.

    Args:
        model: PEFT model; only its adapter is trained.
        loss: loss of that model.
        data: examples.
        section: the optimizer's schedule.
        report: gets `Progress` after each step and `Metrics` where they are due.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: Any,
        loss: CausalLoss,
        data: Dataset,
        section: TrainSection,
        *,
        report: Report,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._loss = loss
        self._data = data
        self._section = section
        self._report = report
        self._clock = clock
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._plan = Plan([example.length for example in data.train], section)
        self._total = _Meter(self._parameters[0].device)
        self._eval_seconds = 0.0

    def run(self) -> Outcome:
        """Evaluate, train, evaluate.

        Raises:
            JobError: `TRAINING_DIVERGED`: a loss or gradient was not a finite number.
        """
        before = self._evaluate(step=0)
        seconds = self._train()
        after = self._evaluate(step=self._plan.total_steps)
        return Outcome(
            eval_loss_before=before,
            eval_loss_after=after,
            train_loss=self._total.read(),
            steps=self._plan.total_steps,
            trained_tokens=self._total.trained,
            input_tokens=self._total.inputs,
            train_seconds=seconds,
            eval_seconds=self._eval_seconds,
        )

    def _train(self) -> float:
        """All optimizer steps; returns the seconds they took, evaluations left out."""
        section, plan = self._section, self._plan
        optimizer = torch.optim.AdamW(
            self._parameters,
            lr=section.learning_rate,
            weight_decay=section.weight_decay,
            fused=True if section.optim == "adamw_torch_fused" else None,
        )
        scheduler = get_scheduler(
            section.lr_scheduler_type,
            optimizer,
            num_warmup_steps=math.ceil(section.warmup_ratio * plan.total_steps),
            num_training_steps=plan.total_steps,
        )
        self._model.train()
        recent, started, paused = _Meter(self._total.device), self._clock(), self._eval_seconds
        for step, batches in enumerate(plan.steps(), start=1):
            learning_rate = scheduler.get_last_lr()[0]
            norm = self._step(batches, recent)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            seconds = self._clock() - started - (self._eval_seconds - paused)
            self._report(self._progress(step, seconds))
            if step % section.logging_steps == 0 or step == plan.total_steps:
                self._log(step, recent, norm, learning_rate, seconds)
                recent = _Meter(self._total.device, since=seconds)
            if section.eval_steps and step % section.eval_steps == 0 and step < plan.total_steps:
                self._evaluate(step)
        return self._clock() - started - (self._eval_seconds - paused)

    def _step(self, batches: list[list[int]], recent: _Meter) -> torch.Tensor:
        """Gradients of one optimizer step; returns their norm, on the device.

        Each trained token weighs the same, however the step is cut into micro-batches: the divisor is the number
        of trained tokens in the whole step.
        """
        examples = [[self._data.train[index] for index in batch] for batch in batches]
        targets = sum(example.targets for batch in examples for example in batch)
        for batch in examples:
            summed = self._loss.sum(batch)
            (summed / targets).backward()  # type: ignore[no-untyped-call]
            for meter in (recent, self._total):
                meter.add(summed.detach(), batch)
        return torch.nn.utils.clip_grad_norm_(self._parameters, self._section.max_grad_norm)

    def _progress(self, step: int, seconds: float) -> Progress:
        left = seconds / step * (self._plan.total_steps - step)
        return Progress(step=step, total_steps=self._plan.total_steps, eta_seconds=math.ceil(left))

    def _log(self, step: int, recent: _Meter, norm: torch.Tensor, learning_rate: float, seconds: float) -> None:
        """Read the device's numbers: the one place in the loop that waits for it."""
        values = {"loss": recent.read(), "grad_norm": float(norm.item())}
        _check_finite(values, step)
        took = max(seconds - recent.since, 1e-9)
        values |= {
            "learning_rate": learning_rate,
            "epoch": step / self._plan.steps_per_epoch,
            "tokens_per_second": recent.trained / took,
            "input_tokens_per_second": recent.inputs / took,
        }
        self._report(Metrics(step=step, values=values))

    def _evaluate(self, step: int) -> float | None:
        if not self._data.evaluation:
            return None
        started = self._clock()
        loss = self._loss.mean(self._data.evaluation, batch_size=self._section.per_device_eval_batch_size)
        self._eval_seconds += self._clock() - started
        _check_finite({"eval_loss": loss}, step)
        self._report(Metrics(step=step, values={"eval_loss": loss}))
        return loss


class _Meter:
    """Adds up losses on the device, and counts tokens on the host."""

    def __init__(self, device: torch.device, *, since: float = 0.0) -> None:
        self.device = device
        self.since = since
        self.trained = 0
        self.inputs = 0
        self._sum = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, summed: torch.Tensor, batch: list[Any]) -> None:
        self._sum += summed
        self.trained += sum(example.targets for example in batch)
        self.inputs += sum(example.length for example in batch)

    def read(self) -> float:
        return float(self._sum.item()) / self.trained


def _check_finite(values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise JobError(
                ErrorCode.TRAINING_DIVERGED,
                f"{name} at step {step}",
                expected="a finite number",
                found=value,
                hint="lower train.learning_rate, or set train.bf16 to false",
            )
