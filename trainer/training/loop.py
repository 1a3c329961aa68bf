"""The training loop: from a model with a fresh adapter to a trained one.

The step policy computes and applies the update of a step, and the method computes its loss. The loop evaluates,
logs, stops early, copies the last finite adapter, and decides when a state is saved.

Between two logged steps the host never waits for the device: batches are views of tokens that are on the device
already, losses are added up there, and the host counts rows and tokens itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from trainer.spec import LearningRate, TrainSection
from trainer.training.adapter import copy_parameters, restore_parameters
from trainer.training.divergence import LastFiniteAdapter
from trainer.training.early_stopping import EarlyStopping
from trainer.training.events import EventHandler, MetricsMeasured, StepCompleted
from trainer.training.interruption import Interrupts
from trainer.training.methods.method import Method, StepRows
from trainer.training.optimization import set_learning_rate
from trainer.training.privacy.privacy_findings import DifferentialPrivacy
from trainer.training.progress import (
    Meter,
    TrainingOutcome,
    TrainState,
    random_state,
    restore_random,
)
from trainer.training.step_policy import StepPolicy

SaveState = Callable[[TrainState, bool], None]
"""Receives the state every `save_steps` steps and after the last one, and whether it is the last. The same step
may come twice."""


class Trainer:
    """Trains one adapter.

    Args:
        model: PEFT model; only its adapter is trained.
        method: computes losses and evaluates.
        policy: computes gradients and applies the updates.
        section: intervals of logging, evaluation and checkpoints; early stopping; the learning rate.
        report: receives `StepCompleted` after each step, and `MetricsMeasured` at the logged ones.
        save: receives the state at each checkpoint.
        interrupts: defers signals while the state is inconsistent.
        clock: returns seconds; must be monotonic.
    """

    def __init__(
        self,
        model: Any,
        method: Method,
        policy: StepPolicy,
        section: TrainSection,
        *,
        report: EventHandler,
        save: SaveState = lambda _state, _is_last: None,
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
        self._train_seconds = self._eval_seconds = 0.0
        self._last_finite = LastFiniteAdapter(policy.parameters)
        self._stopping = EarlyStopping(section, policy.parameters)
        # Set where the best adapter has replaced it.
        self._last_adapter: tuple[Tensor, ...] | None = None

    def run(self) -> TrainingOutcome:
        """Evaluates, trains, and evaluates again. After `restore`, continues from the restored step.

        Raises:
            JobError: `TRAINING_DIVERGED`: a loss, a gradient or a parameter was not finite. The model then has the
                adapter of `last_finite_step`.
        """
        try:
            if not self._done:
                self._loss_before = self._evaluate(0)
            self._train()
            # Early stopping ends right after an evaluation, and a resumed run may have no step left. The loss of
            # the last step is known then and is not computed again.
            last, done = self._stopping.last, self._done
            loss_after = last[1] if last and last[0] == done > 0 else self._evaluate(done)
            return TrainingOutcome(
                eval_loss_before=self._loss_before,
                # Before `measured` and `warnings` below: both depend on which adapter the run ends with.
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
        """The step of the adapter that the model has after a divergence; 0 if it must not be released."""
        # With differential privacy none is released: which adapter was the last finite one follows from the rows
        # without noise.
        return self._last_finite.step if self.policy.keeps_state else 0

    def privacy_spent(self) -> DifferentialPrivacy | None:
        """Returns the privacy loss of the steps so far; None for a policy without a privacy budget.

        Raises:
            JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`.
        """
        return self.policy.privacy_spent(self._done)

    def state(self) -> TrainState:
        """Returns the state after the last complete step, also if the next step was interrupted.

        The adapter is a copy. The optimizer's tensors are not: write the state before the next step changes them.
        """
        return TrainState(
            step=self._done,
            # A resumed run needs the adapter of the last step, not the best one that may have replaced it.
            adapter=self._last_adapter or copy_parameters(self.policy.parameters),
            optimizer=self.policy.optimizer.state_dict(),
            # As recorded after the last update: an interrupted forward pass has drawn dropout masks since then.
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
        """Returns `state`, or None if no run can resume from it: no step was made, or a number is not finite."""
        if not self.policy.keeps_state or not self._done:
            return None
        # One loss that is NaN or infinite leaves the sum of all losses so, and the method's other sums likewise.
        # The adapter is checked too, because the loss of a step is computed before its update.
        numbers = (self._total.totals()[0], self._last_finite.adapter_norm(), *self.method.state())
        return self.state() if all(map(math.isfinite, numbers)) else None

    def restore(self, state: TrainState) -> None:
        """Continues from a state. On a CPU, the later steps are bitwise those of a run without the interruption.

        This needs every input of a later step: parameters, moments of the optimizer, generators, the micro-batch
        budget (it sets the order of additions), the unlogged totals, and the counters of early stopping.
        """
        restore_parameters(self.policy.parameters, state.adapter)
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
        # The checkpoint's adapter is finite (`read_state` refuses any other), so a divergence may fall back to it.
        self._last_finite.keep(state.step)
        self.method.restore(state.method_state)

    def _train(self) -> None:
        """Makes the remaining optimizer steps, with the evaluations and checkpoints that are due after them."""
        save_steps = self._section.save_steps
        self._model.train()
        self._timed_until = self._clock()
        self._evaluate_if_due()  # the run may have been interrupted during the evaluation after this step
        for step in self.policy.steps(self._done):
            # Checked before each step, so that a run that is resumed after its last evaluation stops there too.
            if self._stopping.exhausted:
                self._warn(
                    f"stopped after step {self._done} of {self.policy.plan.total_steps}: "
                    f"{self._section.early_stopping_patience} evaluations brought no better held-out loss"
                )
                break
            self._make_step(step)
            # The evaluation comes first: the checkpoint contains its loss and the counters of early stopping.
            self._evaluate_if_due()
            if save_steps and self._done % save_steps == 0:
                self._save_state(is_last=False)
        self._count_train_time()
        if save_steps:
            # Sampling and the privacy audit follow, and an interruption there loses no step.
            self._save_state(is_last=True)

    def _make_step(self, step: StepRows) -> None:
        """Makes one optimizer step.

        Until the update there are only gradients, so a signal interrupts at once and the gradients are dropped.
        From the update on, a signal is deferred until parameters, optimizer, counters and log agree on the number
        of steps.
        """
        sums = self.policy.compute_gradients(step, self._done + 1, self._random)
        with self._interrupts.deferred():
            norm = self.update(sums, step)
            self._count_train_time()
            done, total = self._done, self.policy.plan.total_steps
            self._report(StepCompleted(step=done, total_steps=total))
            if done % self._section.logging_steps == 0 or done == total:
                self._log(norm)

    def update(self, sums: Tensor, step: StepRows) -> Tensor:
        """Applies this process's gradients and advances the state by one step.

        Args:
            sums: return value of `StepPolicy.compute_gradients`.
            step: the rows of the step.

        Returns:
            L2 norm of the gradients before clipping, on the device.
        """
        set_learning_rate(self.policy.optimizer, self._rates.at(self._done + 1))
        sums, norm = self.policy.update(sums)
        self.method.record_step(sums, step.share)
        # The counts are those of all ranks, like `sums` after the update: every rank logs the same numbers.
        for meter in (self._recent, self._total):
            meter.add(sums[0], trained=step.share.trained_tokens, inputs=step.share.input_tokens)
        # The generators' states belong to this step: the next forward pass draws from them.
        self._done, self._random = self._done + 1, random_state(self.policy.device)
        return norm

    def _count_train_time(self) -> None:
        """Adds the time since the last call, evaluation or checkpoint to the training time."""
        now = self._clock()
        self._train_seconds, self._timed_until = self._train_seconds + now - self._timed_until, now

    def _evaluate_if_due(self) -> None:
        """Evaluates every `eval_steps` steps, except after the last step, where `run` evaluates in any case."""
        step, every, last = self._done, self._section.eval_steps, self._stopping.last
        is_due = every and step % every == 0 and 0 < step < self.policy.plan.total_steps
        # A second evaluation of one step would count as one more without improvement.
        if is_due and (last is None or last[0] < step):
            self._evaluate(step)

    def _save_state(self, *, is_last: bool) -> None:
        """Saves the state if a run can resume from it; the time for saving does not count as training."""
        if (state := self.resumable_state()) is not None:
            self._save(state, is_last)
        self._timed_until = self._clock()

    def _warn(self, text: str) -> None:
        if text not in self.policy.warnings:  # the restored state may contain this warning already
            self.policy.warnings.append(text)

    def _load_best(self, last_loss: float | None) -> float | None:
        """Restores the best adapter, with `load_best_model_at_end`. Returns the loss of the final adapter."""
        best = self._stopping.best
        if not self._section.load_best_model_at_end or last_loss is None or best is None:
            return last_loss
        # With equal losses the later adapter is released.
        if best.loss >= last_loss:
            return last_loss
        self._last_adapter = copy_parameters(self.policy.parameters)
        restore_parameters(self.policy.parameters, best.adapter)
        self.method.evaluation.extra.clear()  # measured with the last step's adapter
        self._warn(f"the adapter is that of step {best.step}, where the held-out loss was lowest")
        return best.loss

    def _log(self, norm: Tensor) -> None:
        """Reports the metrics of the steps since the last call; waits for the device."""
        step = self._done
        recent, self._recent = self._recent, Meter(self.policy.device, since=self._train_seconds)
        values = {**self.method.read_metrics(recent), "grad_norm": float(norm.item())}
        # Before the report: a metric that is not finite must not leave as a regular measurement.
        self._last_finite.check(values, step)
        # Positive, so that a step that is shorter than the clock's resolution does not divide by zero.
        seconds = max(self._train_seconds - recent.since, 1e-9)
        values |= {
            "learning_rate": self._rates.at(step),
            "epoch": step / self.policy.plan.steps_per_epoch,
            "tokens_per_second": recent.trained / seconds,
            "input_tokens_per_second": recent.inputs / seconds,
        }
        if (ratio := self._section.loraplus_lr_ratio) is not None:
            values["learning_rate_b"] = self._rates.at(step) * ratio
        self._report(MetricsMeasured(step=step, values=values))

    def _evaluate(self, step: int) -> float | None:
        """Measures, checks and reports the held-out loss; returns None where there are no held-out rows."""
        started = self._clock()
        loss = self.method.evaluation.loss()
        # No signal interrupts from here on: the report and the counters of early stopping must agree.
        with self._interrupts.deferred():
            self._timed_until = self._clock()
            self._eval_seconds += self._timed_until - started
            if loss is not None:
                values = {"eval_loss": loss, **self.method.evaluation.extra}
                self._last_finite.check(values, step)
                self._report(MetricsMeasured(step=step, values=values))
                self._stopping.add_evaluation(loss, step)
        return loss
