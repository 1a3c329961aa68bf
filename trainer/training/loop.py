"""The training loop: from a model with a fresh adapter to a trained one. Reads from top to bottom.

Between the points where something is reported nothing waits for the device: batches are views of tokens that are
there already, losses add up there, and what the host needs to know (how many tokens, which rows) it knows itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.data.examples.example_set import Dataset
from trainer.spec import TrainSection
from trainer.training.batches import StepPlan, sort_rows, token_budget
from trainer.training.distributed import ALONE, RankGroup, RankShare
from trainer.training.divergence import LastFiniteAdapter, put
from trainer.training.early_stopping import EarlyStopping
from trainer.training.evaluation import Evaluation
from trainer.training.events import MetricsMeasured, StepCompleted, TrainingEvent
from trainer.training.interruption import Interrupts
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import Method, SupervisedFineTuning
from trainer.training.optimization import LearningRate, make_optimizer
from trainer.training.out_of_memory import is_out_of_memory
from trainer.training.progress import Meter, TrainingOutcome, TrainState, random_state, restore_random
from trainer.training.steps import ordered_steps
from trainer.training.token_store import OrderedTokens, TokenStore

Report = Callable[[TrainingEvent], None]
"""Takes what happens during training; called between optimizer steps."""

Save = Callable[[TrainState], None]
"""Takes the state where `save_steps` says so, and after the last step; may be given the same step twice."""


class Trainer:
    """One run.

    Args:
        model: PEFT model; only its adapter is trained.
        loss: loss of that model; for the held-out rows, and what is learned by where no other method is given.
        data: examples.
        section: the optimizer's schedule.
        report: gets `StepCompleted` after each step and `MetricsMeasured` where they are due.
        bins: which rows share a unit of the batch size; None where each is a unit of its own.
        method: what is learned by; None: every trained token alike.
        ranks: which of several processes this is; all of them must do the same at the same time.
        save: gets the state where it is due.
        interrupts: holds signals back where half of something must not be seen.
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
        bins: list[list[int]] | None = None,
        method: Method | None = None,
        ranks: RankGroup = ALONE,
        save: Save = lambda _state: None,
        interrupts: Interrupts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._section = section
        self._report = report
        self._clock = clock
        self._save = save
        self._interrupts = interrupts or Interrupts()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._ranks = ranks
        ranks.broadcast_parameters(self._parameters)
        device = self._parameters[0].device
        self._store = TokenStore(data.train, device)
        self._units = bins or [[row] for row in range(len(data.train))]
        sizes = [sum(self._store.lengths[row] for row in unit) for unit in self._units]
        self._plan = StepPlan(sizes, section, ranks.size)
        self._budget = token_budget(max(sizes) * section.per_device_train_batch_size, device)
        eval_rows = section.per_device_eval_batch_size
        self._method: Method = method or SupervisedFineTuning(
            loss, Evaluation(data.evaluation, loss, rows=eval_rows, device=device, ranks=ranks)
        )
        self._rates = LearningRate(section, self._plan.total_steps)
        self._optimizer = make_optimizer(self._parameters, section)
        self._total = Meter(device)
        self._recent = Meter(device)
        self._random = random_state(device)
        self._done = 0
        self._before: float | None = None
        self._mark = 0.0
        self._train_seconds = 0.0
        self._eval_seconds = 0.0
        self._sound = LastFiniteAdapter(self._parameters)
        self._patience = EarlyStopping(section, self._parameters)
        self._replaced: tuple[Tensor, ...] | None = None
        self._warnings: list[str] = []

    def run(self) -> TrainingOutcome:
        """Evaluate, train, evaluate; behind `restore`, what is left of that.

        Raises:
            JobError: `TRAINING_DIVERGED`: a loss or gradient was not a finite number; the model has the last
                adapter that was seen to be sound.
        """
        if not self._done:
            self._before = self._evaluate(0)
        self._train()
        seen = self._patience.last  # early stopping ends right behind an evaluation
        after = seen[1] if seen and seen[0] == self._done > 0 else self._evaluate(self._done)
        return TrainingOutcome(
            eval_loss_before=self._before,
            eval_loss_after=self._take_best(after),
            train_loss=self._method.mean_loss(self._total, self._done),
            steps=self._done,
            trained_tokens=self._total.trained,
            input_tokens=self._total.inputs,
            train_seconds=self._train_seconds,
            eval_seconds=self._eval_seconds,
            pairs=self._method.evaluation.measured(),
            warnings=tuple(self._warnings),
        )

    @property
    def sound_step(self) -> int:
        """After a divergence: the step of the adapter that the model has again; 0 where none was trained."""
        return self._sound.step

    def state(self) -> TrainState:
        """The state after the last whole step, also where the one after it was broken off.

        The adapter is copied, and what the optimizer holds is not: write it down before the next step.
        """
        return TrainState(
            step=self._done,
            adapter=self._replaced or self._copy(),
            optimizer=self._optimizer.state_dict(),
            random=self._random,
            totals=self._total.totals(),
            budget=self._budget,
            best=self._patience.best,
            recent=self._recent.totals(),
            since=self._recent.since,
            last=self._patience.last,
            before=self._before,
            train_seconds=self._train_seconds,
            eval_seconds=self._eval_seconds,
            pairs=self._method.state(),
            warnings=tuple(self._warnings),
        )

    def sound_state(self) -> TrainState | None:
        """`state`, where there is something to go on from: a step was made, and its numbers are finite."""
        if not self._done or not math.isfinite(self._total.totals()[0]) or not math.isfinite(self._sound.norm()):
            return None
        return self.state()

    def restore(self, state: TrainState) -> None:
        """Go on from there: what follows is bitwise what would have followed."""
        put(self._parameters, state.adapter)
        self._optimizer.load_state_dict(state.optimizer)
        restore_random(state.random)
        self._random = state.random
        device = self._total.device
        self._total = Meter(device, totals=state.totals)
        self._recent = Meter(device, totals=state.recent, since=state.since)
        self._done, self._budget, self._before = state.step, state.budget, state.before
        self._train_seconds, self._eval_seconds = state.train_seconds, state.eval_seconds
        self._patience.best, self._patience.last = state.best, state.last
        self._warnings = list(state.warnings)
        self._sound.keep(state.step)
        self._method.restore(state.pairs)

    def _train(self) -> None:
        """All optimizer steps that are left, and what is due behind them."""
        every = self._section.save_steps
        self._model.train()
        self._mark = self._clock()
        self._evaluate_if_due()  # it may be what was broken off
        for ordered, rows, share in self._steps():
            if self._patience.exhausted:
                self._warn(self._patience.verdict(self._done, self._plan.total_steps))
                break
            self._advance(ordered, rows, share)
            self._evaluate_if_due()
            if every and self._done % every == 0:
                self._save_state()
        self._tick()
        if every:
            self._save_state()  # what follows may take long, too

    def _advance(self, ordered: OrderedTokens, rows: slice, share: RankShare) -> None:
        """One optimizer step. A signal breaks it off while there are only gradients; then all of it happens."""
        summed = self._gradients_that_fit(ordered, rows, share)
        with self._interrupts.deferred():
            norm = self._update(summed, share)
            self._tick()
            self._report(self._progress())
            if self._done % self._section.logging_steps == 0 or self._done == self._plan.total_steps:
                self._log(self._done, norm)

    def _update(self, summed: Tensor, share: RankShare) -> Tensor:
        """From this process's gradients to the state after the step; returns the norm of all, on the device."""
        summed = self._ranks.all_reduce_gradients(self._parameters, summed)
        self._rates.apply(self._optimizer, self._done + 1)
        norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._method.count(summed, share)
        for meter in (self._recent, self._total):
            meter.add(summed[0], trained=share.trained_tokens, inputs=share.input_tokens)
        self._done, self._random = self._done + 1, random_state(self._total.device)
        return norm

    def _clip(self) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self._parameters, self._section.max_grad_norm)

    def _tick(self) -> None:
        """Charge what has passed to training."""
        now = self._clock()
        self._train_seconds, self._mark = self._train_seconds + now - self._mark, now

    def _evaluate_if_due(self) -> None:
        """Early stopping ends right behind such an evaluation; the one after the last step is not among them."""
        step, every, last = self._done, self._section.eval_steps, self._patience.last
        if every and step % every == 0 and 0 < step < self._plan.total_steps and (last is None or last[0] < step):
            self._evaluate(step)

    def _save_state(self) -> None:
        if (state := self.sound_state()) is not None:
            self._save(state)
        self._mark = self._clock()

    def _warn(self, text: str) -> None:
        if text not in self._warnings:  # it may have been said before an interruption
            self._warnings.append(text)

    def _take_best(self, last: float | None) -> float | None:
        """With `load_best_model_at_end`: the adapter of the best evaluation; returns the loss of what is kept."""
        best = self._patience.best
        if last is None or best is None or not self._section.load_best_model_at_end or best.loss >= last:
            return last
        self._replaced = self._copy()
        put(self._parameters, best.adapter)
        self._method.evaluation.extra.clear()  # it is of another adapter
        self._warn(f"the adapter is that of step {best.step}, where the held-out loss was lowest")
        return best.loss

    def _steps(self) -> Iterator[tuple[OrderedTokens, slice, RankShare]]:
        return ordered_steps(map(self._share, self._plan.steps(self._done)), self._store)

    def _share(self, step: Sequence[int]) -> RankShare:
        lengths, units = self._store.lengths, [self._units[unit] for unit in step]
        rows_per_unit = self._method.rows_per_unit
        rows = sort_rows(units, lengths, keep_units=rows_per_unit > 1)
        return self._ranks.share_rows(
            rows, lengths, self._store.target_counts, self._passes, rows_per_unit=rows_per_unit
        )

    def _gradients_that_fit(self, ordered: OrderedTokens, rows: slice, share: RankShare) -> Tensor:
        """Gradients of this process's share of a step; returns its sums: see `Method.gradients`.

        Where the memory does not suffice, the same step is tried again in smaller pieces.
        """
        while True:
            try:
                self._ranks.seed_rank(self._section.seed, self._done + 1)
                return self._method.gradients(ordered, rows, share, self._budget)
            except (RuntimeError, MemoryError) as error:
                hopeless = self._ranks.sharded or self._budget <= max(ordered.lengths[rows])
                if hopeless or not is_out_of_memory(error):
                    raise
            self._shrink()
            restore_random(self._random)

    def _passes(self, lengths: Sequence[int]) -> int:
        return self._method.passes(lengths, self._budget)

    def _shrink(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        if self._total.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._warnings:
            self._warnings.append(
                f"at step {self._done + 1} the memory did not suffice for {self._budget} tokens at once: steps "
                "were cut into smaller pieces; the result is the same"
            )
        self._budget //= 2

    def _progress(self) -> StepCompleted:
        step, total = self._done, self._plan.total_steps
        left = self._train_seconds / step * (total - step)
        return StepCompleted(step=step, total_steps=total, eta_seconds=math.ceil(left))

    def _log(self, step: int, norm: Tensor) -> None:
        """Read the device's numbers: beside evaluations the one place in the loop that waits for it."""
        recent, self._recent = self._recent, Meter(self._total.device, since=self._train_seconds)
        values = {**self._method.read(recent), "grad_norm": float(norm.item())}
        self._sound.check(values, step)
        took = max(self._train_seconds - recent.since, 1e-9)
        values |= {
            "learning_rate": self._rates.at(step),
            "epoch": step / self._plan.steps_per_epoch,
            "tokens_per_second": recent.trained / took,
            "input_tokens_per_second": recent.inputs / took,
        }
        self._report(MetricsMeasured(step=step, values=values))

    def _evaluate(self, step: int) -> float | None:
        started = self._clock()
        loss = self._method.evaluation.loss()
        with self._interrupts.deferred():
            self._mark = self._clock()
            self._eval_seconds += self._mark - started
            if loss is not None:
                values = {"eval_loss": loss, **self._method.evaluation.extra}
                self._sound.check(values, step)
                self._report(MetricsMeasured(step=step, values=values))
                self._patience.see(loss, step)
        return loss

    def _copy(self) -> tuple[Tensor, ...]:
        return tuple(parameter.detach().clone() for parameter in self._parameters)
