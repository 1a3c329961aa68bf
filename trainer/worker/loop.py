"""The training loop: from a model with a fresh adapter to a trained one. Reads from top to bottom.

Between the points where something is reported nothing waits for the device: batches are views of tokens that are
there already, losses add up there, and what the host needs to know (how many tokens, which rows) it knows itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from trainer.errors import ErrorCode, JobError
from trainer.spec import TrainSection
from trainer.worker.batches import Plan, cut, token_budget
from trainer.worker.dataset import Dataset
from trainer.worker.evaluation import Evaluation
from trainer.worker.loss import CausalLoss
from trainer.worker.model import is_out_of_memory
from trainer.worker.optimization import LearningRate, make_optimizer
from trainer.worker.patience import Patience
from trainer.worker.progress import Meter, Outcome, TrainState, random_state, restore_random
from trainer.worker.protocol import Message, Metrics, Progress
from trainer.worker.ranks import ALONE, Ranks, Share
from trainer.worker.store import Ordered, TokenStore

Report = Callable[[Message], None]
"""Takes what happens during training; called between optimizer steps."""

SECTION_TOKENS: Final = 1 << 22
"""So many tokens are brought into their order at a time."""


class Training:
    """One run.

    Args:
        model: PEFT model; only its adapter is trained.
        loss: loss of that model.
        data: examples.
        section: the optimizer's schedule.
        report: gets `Progress` after each step and `Metrics` where they are due.
        bins: which rows share a unit of the batch size; None where each is a unit of its own.
        ranks: which of several processes this is; all of them must do the same at the same time.
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
        ranks: Ranks = ALONE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._loss = loss
        self._section = section
        self._report = report
        self._clock = clock
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._ranks = ranks
        ranks.take_first(self._parameters)
        device = self._parameters[0].device
        self._store = TokenStore(data.train, device)
        self._units = bins or [[row] for row in range(len(data.train))]
        sizes = [sum(self._store.lengths[row] for row in unit) for unit in self._units]
        self._plan = Plan(sizes, section, ranks.size)
        self._budget = token_budget(max(sizes) * section.per_device_train_batch_size, device)
        eval_rows = section.per_device_eval_batch_size
        self._evaluation = Evaluation(data.evaluation, loss, rows=eval_rows, device=device, ranks=ranks)
        self._rates = LearningRate(section, self._plan.total_steps)
        self._optimizer = make_optimizer(self._parameters, section)
        self._total = Meter(device)
        self._done = 0
        self._eval_seconds = 0.0
        self._good: tuple[int, list[Tensor]] | None = None
        self._patience = Patience(section, self._parameters)
        self._warnings: list[str] = []

    def run(self) -> Outcome:
        """Evaluate, train, evaluate.

        Raises:
            JobError: `TRAINING_DIVERGED`: a loss or gradient was not a finite number; the model has the last
                adapter that was seen to be sound.
        """
        before = self._evaluate(self._done)
        seconds = self._train()
        seen = self._patience.last  # early stopping ends right behind an evaluation
        after = seen[1] if seen and seen[0] == self._done > 0 else self._evaluate(self._done)
        return Outcome(
            eval_loss_before=before,
            eval_loss_after=self._take_best(after),
            train_loss=self._total.read(),
            steps=self._done,
            trained_tokens=self._total.trained,
            input_tokens=self._total.inputs,
            train_seconds=seconds,
            eval_seconds=self._eval_seconds,
            warnings=tuple(self._warnings),
        )

    @property
    def sound_step(self) -> int:
        """After a divergence: the step of the adapter that the model has again; 0 where none was trained."""
        return self._good[0] if self._good is not None else 0

    def state(self) -> TrainState:
        """A copy of the run's state, to be taken between steps (in `report`, after `Progress`)."""
        return TrainState(
            step=self._done,
            adapter=tuple(parameter.detach().clone() for parameter in self._parameters),
            optimizer=self._optimizer.state_dict(),
            random=random_state(self._total.device),
            totals=self._total.totals(),
            budget=self._budget,
            best=self._patience.best,
        )

    def restore(self, state: TrainState) -> None:
        """Go on from there: what follows is bitwise what would have followed."""
        self._put(state.adapter)
        self._optimizer.load_state_dict(state.optimizer)
        restore_random(state.random)
        self._total = Meter(self._total.device, totals=state.totals)
        self._done, self._budget = state.step, state.budget
        self._patience.best = state.best

    def _train(self) -> float:
        """All optimizer steps; returns the seconds they took, evaluations left out."""
        section, total = self._section, self._plan.total_steps
        self._model.train()
        begun, started, paused = self._done, self._clock(), self._eval_seconds
        recent = Meter(self._total.device)
        for step, (ordered, rows, share) in enumerate(self._steps(), start=begun + 1):
            self._ranks.draw_apart(section.seed, step)
            rate = self._rates.apply(self._optimizer, step)
            norm = self._step(ordered, rows, share, recent)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._done = step
            seconds = self._clock() - started - (self._eval_seconds - paused)
            self._report(self._progress(step, seconds / (step - begun)))
            if step % section.logging_steps == 0 or step == total:
                self._log(step, recent, norm, rate, seconds)
                recent = Meter(self._total.device, since=seconds)
            if section.eval_steps and step % section.eval_steps == 0 and step < total:
                self._evaluate(step)
                if self._patience.exhausted:
                    self._warnings.append(self._patience.verdict(step, total))
                    break
        return self._clock() - started - (self._eval_seconds - paused)

    def _take_best(self, last: float | None) -> float | None:
        """With `load_best_model_at_end`: the adapter of the best evaluation; returns the loss of what is kept."""
        best = self._patience.best
        if last is None or best is None or not self._section.load_best_model_at_end or best.loss >= last:
            return last
        self._put(best.adapter)
        self._warnings.append(f"the adapter is that of step {best.step}, where the held-out loss was lowest")
        return best.loss

    def _steps(self) -> Iterator[tuple[Ordered, slice, Share]]:
        """For each step that is left: rows on the device, which of them are the step's, and what it has in all."""
        section: list[Share] = []
        size, lengths = 0, self._store.lengths
        for units in self._plan.steps(self._done):
            rows = sorted((row for unit in units for row in self._units[unit]), key=lengths.__getitem__)
            share = self._ranks.share(rows, lengths, self._store.counts, self._passes)
            section.append(share)
            size += sum(lengths[row] for row in share.rows)
            if size >= SECTION_TOKENS:
                yield from self._section_steps(section)
                section, size = [], 0
        yield from self._section_steps(section)

    def _section_steps(self, section: list[Share]) -> Iterator[tuple[Ordered, slice, Share]]:
        if not section:
            return
        ordered = self._store.ordered([row for share in section for row in share.rows])
        start = 0
        for share in section:
            yield ordered, slice(start, start + len(share.rows)), share
            start += len(share.rows)

    def _step(self, ordered: Ordered, rows: slice, share: Share, recent: Meter) -> Tensor:
        """Gradients of one optimizer step; returns their norm, on the device.

        Where the memory does not suffice, the same step is tried again in smaller pieces.
        """
        before = random_state(self._total.device)
        while True:
            try:
                summed = self._gradients(ordered, rows, share)
                break
            except (RuntimeError, MemoryError) as error:
                hopeless = self._ranks.sharded or self._budget <= max(ordered.lengths[rows])
                if hopeless or not is_out_of_memory(error):
                    raise
            self._shrink()
            restore_random(before)
        summed = self._ranks.add_up(self._parameters, summed)
        for meter in (recent, self._total):
            meter.add(summed, trained=share.trained, inputs=share.inputs)
        return torch.nn.utils.clip_grad_norm_(self._parameters, self._section.max_grad_norm)

    def _gradients(self, ordered: Ordered, rows: slice, share: Share) -> Tensor:
        """Each trained token weighs the same: the divisor is their number in the whole step, on all processes."""
        total = torch.zeros((), dtype=torch.float64, device=self._total.device)
        for part, weight in share.runs(cut(ordered.lengths[rows], self._budget, self._loss.cost)):
            summed = self._loss.sum(ordered.batch(slice(rows.start + part.start, rows.start + part.stop)))
            (summed * weight / share.trained).backward()  # type: ignore[no-untyped-call]
            total += summed.detach() * weight
        return total

    def _passes(self, lengths: Sequence[int]) -> int:
        return len(cut(lengths, self._budget, self._loss.cost))

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

    def _progress(self, step: int, seconds_each: float) -> Progress:
        left = seconds_each * (self._plan.total_steps - step)
        return Progress(step=step, total_steps=self._plan.total_steps, eta_seconds=math.ceil(left))

    def _log(self, step: int, recent: Meter, norm: Tensor, learning_rate: float, seconds: float) -> None:
        """Read the device's numbers: beside evaluations the one place in the loop that waits for it."""
        values = {"loss": recent.read(), "grad_norm": float(norm.item())}
        self._check_finite(values, step)
        took = max(seconds - recent.since, 1e-9)
        values |= {
            "learning_rate": learning_rate,
            "epoch": step / self._plan.steps_per_epoch,
            "tokens_per_second": recent.trained / took,
            "input_tokens_per_second": recent.inputs / took,
        }
        self._report(Metrics(step=step, values=values))

    def _evaluate(self, step: int) -> float | None:
        started = self._clock()
        loss = self._evaluation.loss()
        self._eval_seconds += self._clock() - started
        if loss is not None:
            self._check_finite({"eval_loss": loss}, step)
            self._report(Metrics(step=step, values={"eval_loss": loss}))
            self._patience.see(loss, step)
        return loss

    def _check_finite(self, values: dict[str, float], step: int) -> None:
        """Keep the adapter if all is well, and put back the one that was kept last if not."""
        values = {**values, "the adapter's norm": self._norm()}
        broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if broken is None:
            self._keep(step)
            return
        kept = "none: it went wrong before the first" if self._good is None else f"the one of step {self._good[0]}"
        if self._good is not None:
            self._put(tuple(self._good[1]))
        raise JobError(
            ErrorCode.TRAINING_DIVERGED,
            f"{broken} at step {step}; last sound adapter: {kept}",
            expected="a finite number",
            found=values[broken],
            hint="lower train.learning_rate, or set train.bf16 to false",
        )

    def _norm(self) -> float:
        """A loss is of the adapter before the step: this is of the one after it."""
        norms = torch._foreach_norm([parameter.detach() for parameter in self._parameters])  # noqa: SLF001
        return float(torch.stack(norms).sum().item())

    def _keep(self, step: int) -> None:
        """Copy the adapter; on the device, into the same place each time."""
        if self._good is None:
            self._good = (step, [parameter.detach().clone() for parameter in self._parameters])
            return
        torch._foreach_copy_(self._good[1], [parameter.detach() for parameter in self._parameters])
        self._good = (step, self._good[1])

    def _put(self, adapter: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, adapter, strict=True):
                parameter.copy_(value)
