"""The training loop: from a model with a fresh adapter to a trained one.

How a single step is made is the step policy's; what its loss is, the method's. The loop evaluates, logs, stops
early, keeps the last finite adapter and says when a state is to be saved.

Between two logged steps nothing waits for the device: batches are views of tokens that are there already, losses
add up there, and the host counts rows and tokens itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from trainer.spec import TrainSection
from trainer.training.divergence import LastFiniteAdapter, copy_values
from trainer.training.early_stopping import EarlyStopping
from trainer.training.events import EventHandler, MetricsMeasured, StepCompleted
from trainer.training.interruption import Interrupts
from trainer.training.methods.method import Method, StepRows
from trainer.training.optimization import LearningRate
from trainer.training.privacy.privacy_findings import DifferentialPrivacy
from trainer.training.progress import Meter, TrainingOutcome, TrainState, random_state, restore_random
from trainer.training.step_policy import StepPolicy

SaveState = Callable[[TrainState], None]
"""Receives the state every `save_steps` steps and after the last one; may receive one step twice."""


class Trainer:
    """Trains one adapter.

    Args:
        model: PEFT model; only its adapter is trained.
        method: computes gradients and evaluates.
        policy: makes the optimizer steps.
        section: how often to log, evaluate and save; early stopping; the learning rate.
        report: receives `StepCompleted` after each step and `MetricsMeasured` where they are due.
        save: receives the state where it is due.
        interrupts: holds signals back while the state is between two steps.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: Any,
        method: Method,
        policy: StepPolicy,
        section: TrainSection,
        *,
        report: EventHandler,
        save: SaveState = lambda _state: None,
        interrupts: Interrupts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.method = method
        self._model = model
        self._section = section
        self._report = report
        self._save = save
        self._interrupts = interrupts or Interrupts()
        self._clock = clock
        self._rates = LearningRate(section, policy.plan.total_steps)
        self._total = Meter(policy.device)
        self._recent = Meter(policy.device)
        self._random = random_state(policy.device)
        self._done = 0
        self._loss_before: float | None = None
        self._timed_until = 0.0
        self._train_seconds = 0.0
        self._eval_seconds = 0.0
        self._last_finite = LastFiniteAdapter(policy.parameters)
        self._stopping = EarlyStopping(section, policy.parameters)
        self._last_adapter: tuple[Tensor, ...] | None = None  # set where the best adapter has replaced it

    def run(self) -> TrainingOutcome:
        """Evaluate, train, evaluate; after `restore`, what is left of that.

        Raises:
            JobError: `TRAINING_DIVERGED`: a loss or gradient was not a finite number; the model has the last
                adapter that was seen to be finite.
        """
        try:
            if not self._done:
                self._loss_before = self._evaluate(0)
            self._train()
            last = self._stopping.last  # early stopping ends directly after an evaluation
            loss_after = last[1] if last and last[0] == self._done > 0 else self._evaluate(self._done)
            return TrainingOutcome(
                eval_loss_before=self._loss_before,
                eval_loss_after=self._load_best(loss_after),
                train_loss=self.method.mean_loss(self._total, self._done),
                steps=self._done,
                trained_tokens=self._total.trained,
                input_tokens=self._total.inputs,
                train_seconds=self._train_seconds,
                eval_seconds=self._eval_seconds,
                pairs=self.method.evaluation.measured(),
                warnings=tuple(self.policy.warnings),
            )
        finally:
            self.policy.close()

    @property
    def last_finite_step(self) -> int:
        """Returns the step of the adapter that the model has after a divergence; 0 where none may leave."""
        return self._last_finite.step if self.policy.keeps_state else 0

    def privacy_spent(self) -> DifferentialPrivacy | None:
        """Returns what the steps so far spent of a privacy budget; None where there is none.

        Raises:
            JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`.
        """
        return self.policy.privacy_spent(self._done)

    def state(self) -> TrainState:
        """Returns the state after the last complete step, also where the next one was interrupted.

        The adapter is copied. What the optimizer holds is not: write it down before the next step.
        """
        return TrainState(
            step=self._done,
            adapter=self._last_adapter or self._copy_adapter(),
            optimizer=self.policy.optimizer.state_dict(),
            random=self._random,
            totals=self._total.totals(),
            budget=self.policy.budget,
            best=self._stopping.best,
            recent=self._recent.totals(),
            since=self._recent.since,
            last=self._stopping.last,
            before=self._loss_before,
            train_seconds=self._train_seconds,
            eval_seconds=self._eval_seconds,
            method_state=self.method.state(),
            warnings=tuple(self.policy.warnings),
        )

    def resumable_state(self) -> TrainState | None:
        """Returns `state` where a run can continue from it: a step was made, and its numbers are finite."""
        if not self.policy.keeps_state or not self._done:
            return None
        is_finite = math.isfinite(self._total.totals()[0]) and math.isfinite(self._last_finite.adapter_norm())
        return self.state() if is_finite else None

    def restore(self, state: TrainState) -> None:
        """Continue from a state: what follows is bitwise what would have followed without the interruption."""
        copy_values(self.policy.parameters, state.adapter)
        self.policy.optimizer.load_state_dict(state.optimizer)
        self.policy.budget = state.budget
        self.policy.warnings[:] = state.warnings
        restore_random(state.random)
        self._random = state.random
        self._total = Meter(self.policy.device, totals=state.totals)
        self._recent = Meter(self.policy.device, totals=state.recent, since=state.since)
        self._done, self._loss_before = state.step, state.before
        self._train_seconds, self._eval_seconds = state.train_seconds, state.eval_seconds
        self._stopping.best, self._stopping.last = state.best, state.last
        self._last_finite.keep(state.step)
        self.method.restore(state.method_state)

    def _train(self) -> None:
        """Make the remaining optimizer steps, with the evaluations and checkpoints that are due after them."""
        save_steps = self._section.save_steps
        self._model.train()
        self._timed_until = self._clock()
        self._evaluate_if_due()  # the interruption may have come during this evaluation
        for step in self.policy.steps(self._done):
            if self._stopping.exhausted:
                self._warn(self._stopping.describe(self._done, self.policy.plan.total_steps))
                break
            self._make_step(step)
            self._evaluate_if_due()
            if save_steps and self._done % save_steps == 0:
                self._save_state()
        self._count_train_time()
        if save_steps:
            self._save_state()  # sampling and auditing follow, and may take long

    def _make_step(self, step: StepRows) -> None:
        """Make one optimizer step.

        A signal interrupts it while there are only gradients, which are then dropped. From the update on, a signal
        waits until parameters, optimizer, counters and log agree on the number of steps.
        """
        sums = self.policy.compute_gradients(step, self._done + 1, self._random)
        with self._interrupts.deferred():
            norm = self.update(sums, step)
            self._count_train_time()
            self._report(self._progress())
            if self._done % self._section.logging_steps == 0 or self._done == self.policy.plan.total_steps:
                self._log(norm)

    def update(self, sums: Tensor, step: StepRows) -> Tensor:
        """Go from this process's gradients to the state after the step.

        Args:
            sums: what `StepPolicy.compute_gradients` returned.
            step: its rows.

        Returns:
            The norm of all gradients before clipping, on the device.
        """
        self._rates.apply(self.policy.optimizer, self._done + 1)
        sums, norm = self.policy.update(sums)
        self.method.record_step(sums, step.share)
        for meter in (self._recent, self._total):
            meter.add(sums[0], trained=step.share.trained_tokens, inputs=step.share.input_tokens)
        self._done, self._random = self._done + 1, random_state(self.policy.device)
        return norm

    def _count_train_time(self) -> None:
        """Count the time since the last call, evaluation or checkpoint as training."""
        now = self._clock()
        self._train_seconds, self._timed_until = self._train_seconds + now - self._timed_until, now

    def _evaluate_if_due(self) -> None:
        """Evaluate every `eval_steps` steps, but not after the last one: `run` evaluates then in any case."""
        step, every, last = self._done, self._section.eval_steps, self._stopping.last
        is_due = every and step % every == 0 and 0 < step < self.policy.plan.total_steps
        if is_due and (last is None or last[0] < step):
            self._evaluate(step)

    def _save_state(self) -> None:
        if (state := self.resumable_state()) is not None:
            self._save(state)
        self._timed_until = self._clock()

    def _warn(self, text: str) -> None:
        if text not in self.policy.warnings:  # a resumed run may have warned before its interruption
            self.policy.warnings.append(text)

    def _load_best(self, last_loss: float | None) -> float | None:
        """With `load_best_model_at_end`, restore the best adapter; returns the loss of the one that stays."""
        best = self._stopping.best
        if last_loss is None or best is None or best.loss >= last_loss:
            return last_loss
        if not self._section.load_best_model_at_end:
            return last_loss
        self._last_adapter = self._copy_adapter()
        copy_values(self.policy.parameters, best.adapter)
        self.method.evaluation.extra.clear()  # measured with the adapter of the last step
        self._warn(f"the adapter is that of step {best.step}, where the held-out loss was lowest")
        return best.loss

    def _progress(self) -> StepCompleted:
        step, total = self._done, self.policy.plan.total_steps
        seconds_left = self._train_seconds / step * (total - step)
        return StepCompleted(step=step, total_steps=total, eta_seconds=math.ceil(seconds_left))

    def _log(self, norm: Tensor) -> None:
        """Report the metrics since the last call. Apart from evaluations, only this waits for the device."""
        step = self._done
        recent, self._recent = self._recent, Meter(self.policy.device, since=self._train_seconds)
        values = {**self.method.read_metrics(recent), "grad_norm": float(norm.item())}
        self._last_finite.check(values, step)
        seconds = max(self._train_seconds - recent.since, 1e-9)
        values |= {
            "learning_rate": self._rates.at(step),
            "epoch": step / self.policy.plan.steps_per_epoch,
            "tokens_per_second": recent.trained / seconds,
            "input_tokens_per_second": recent.inputs / seconds,
        }
        self._report(MetricsMeasured(step=step, values=values))

    def _evaluate(self, step: int) -> float | None:
        started = self._clock()
        loss = self.method.evaluation.loss()
        with self._interrupts.deferred():
            self._timed_until = self._clock()
            self._eval_seconds += self._timed_until - started
            if loss is not None:
                values = {"eval_loss": loss, **self.method.evaluation.extra}
                self._last_finite.check(values, step)
                self._report(MetricsMeasured(step=step, values=values))
                self._stopping.add_evaluation(loss, step)
        return loss

    def _copy_adapter(self) -> tuple[Tensor, ...]:
        return tuple(parameter.detach().clone() for parameter in self.policy.parameters)
