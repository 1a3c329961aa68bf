"""How an optimizer step is made: which rows it takes, and how their gradients become an update of the adapter.

`PlainStepPolicy` goes through the rows in epochs, adds up gradients and clips their sum. Differential privacy is
another policy, in `trainer.training.privacy.private_step_policy`. The loop around the steps is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.spec import TrainSection
from trainer.training.batches import StepPlan, sort_rows, token_budget
from trainer.training.distributed import ALONE, RankGroup, RankShare
from trainer.training.methods.method import Method, StepRows
from trainer.training.optimization import make_optimizer
from trainer.training.out_of_memory import is_out_of_memory
from trainer.training.progress import restore_random
from trainer.training.token_store import TokenStore, split_sections

if TYPE_CHECKING:
    from trainer.training.privacy.privacy_findings import DifferentialPrivacy


class StepPolicy(ABC):
    """Makes the optimizer steps of one run.

    Attributes:
        parameters: the trained parameters, in the model's order.
        optimizer: updates them.
        plan: the units of each step, and the number of steps.
        budget: maximum number of tokens in a micro-batch.
        warnings: messages for the provider; the trainer adds its own.
        keeps_state: whether the state between two steps may be written to disk, and whether an adapter may be
            released after a divergence.
    """

    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    plan: StepPlan
    budget: int
    warnings: list[str]
    keeps_state: bool

    @property
    def device(self) -> torch.device:
        """The device of the trained parameters."""
        return self.parameters[0].device

    @abstractmethod
    def steps(self, done: int) -> Iterator[StepRows]:
        """Yields the rows of each step after the first `done` ones."""

    @abstractmethod
    def compute_gradients(self, step: StepRows, number: int, random: tuple[Tensor, ...]) -> Tensor:
        """Computes the gradients of this process's rows; the parameters do not change.

        Args:
            step: the rows.
            number: number of the step, from 1.
            random: states of torch's generators before the step, for computing it again.

        Returns:
            float64 [n] on the device, as `Method.compute_gradients`.
        """

    @abstractmethod
    def update(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Updates the parameters by the gradients, at the optimizer's learning rate, and clears the gradients.

        Args:
            sums: return value of `compute_gradients`.

        Returns:
            The sums over all processes, and the norm of the gradients before clipping; both on the device.
        """

    def privacy_spent(self, steps: int) -> DifferentialPrivacy | None:  # noqa: ARG002 -- for policies that spend any
        """Returns the privacy loss of `steps` steps; None for a policy without a privacy budget."""
        return None

    def close(self) -> None:  # noqa: B027 -- most policies leave nothing on the model
        """Removes the policy's hooks from the model."""


class PlainStepPolicy(StepPolicy):
    """Takes rows in epochs, adds up their gradients over micro-batches and processes, clips the sum and steps.

    Args:
        model: PEFT model; only its adapter is trained.
        method: computes gradients of rows.
        examples: the training rows.
        section: batch sizes, seed, optimizer, clipping.
        ranks: the ranks that train together; all of them must make the same calls in the same order.
    """

    keeps_state = True

    def __init__(
        self,
        model: Any,
        method: Method,
        examples: Sequence[Example],
        section: TrainSection,
        *,
        ranks: RankGroup = ALONE,
    ) -> None:
        named = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.parameters = list(named.values())
        # Before the optimizer is created: all ranks start from the adapter of rank 0.
        ranks.broadcast_parameters(self.parameters)
        self.optimizer = make_optimizer(named, section)
        self.warnings = []
        self._method = method
        self._section = section
        self._ranks = ranks
        self._store = TokenStore(examples, self.device)
        lengths = [sum(self._store.lengths[row] for row in unit) for unit in method.units]
        self.plan = StepPlan(lengths, section, ranks.size)
        # The tokens of a batch of the longest units: the job spec's batch size promises that they fit into memory.
        self.budget = token_budget(max(lengths) * section.per_device_train_batch_size, self.device)

    def steps(self, done: int) -> Iterator[StepRows]:
        """Yields the rows of each step after the first `done` ones; the rows depend on the seed alone."""
        lengths = self._store.lengths
        shares = map(self._share, self.plan.steps(done))
        # One upload for many steps: the single step is free of copies from the host.
        for section in split_sections(
            shares, lambda share: sum(lengths[row] for row in share.rows)
        ):
            ordered = self._store.reorder([row for share in section for row in share.rows])
            start = 0
            for share in section:
                yield StepRows(ordered, slice(start, start + len(share.rows)), share)
                start += len(share.rows)

    def _share(self, units: Sequence[int]) -> RankShare:
        """Returns this rank's share of a step with these units."""
        rows_per_unit = self._method.rows_per_unit
        # A packed bin is a unit for the batch size only: its rows may go to different ranks and micro-batches. A
        # pair stays together, because its loss needs both answers.
        rows = sort_rows(
            [self._method.units[unit] for unit in units],
            self._store.lengths,
            keep_units=rows_per_unit > 1,
        )
        return self._ranks.share_rows(
            rows,
            self._store.lengths,
            self._store.target_counts,
            partial(self._method.split, budget=self.budget),
            rows_per_unit=rows_per_unit,
        )

    def compute_gradients(self, step: StepRows, number: int, random: tuple[Tensor, ...]) -> Tensor:
        """Computes the gradients; where memory is exhausted, computes the step again in smaller micro-batches.

        The result is the same for every size, apart from rounding: the loss is a sum, divided by a total of the
        complete step. With a sharded base model no process can retry alone, since the others wait for it.

        Raises:
            RuntimeError, MemoryError: memory is exhausted with one row per micro-batch.
        """
        while True:
            try:
                # In the loop, because `restore_random` below returns to the state from before this seed.
                self._ranks.seed_rank(self._section.seed, number)
                return self._method.compute_gradients(step, self.budget)
            except (RuntimeError, MemoryError) as error:
                cannot_shrink = self._ranks.sharded or self.budget <= max(
                    step.ordered.lengths[step.rows]
                )
                if cannot_shrink or not is_out_of_memory(error):
                    raise
            # After the handler: the exception's traceback would keep the activations of the failed pass in memory.
            self._shrink_budget(number)
            restore_random(random)  # dropout and noise are drawn as in the first attempt

    def _shrink_budget(self, number: int) -> None:
        """Drops the gradients of a failed attempt and halves the budget; the first time it warns the provider."""
        # The micro-batches before the failed one have added their gradients already.
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            # Cached blocks have the sizes of the larger micro-batch, and smaller ones would fragment them.
            torch.cuda.empty_cache()
        if not self.warnings:
            self.warnings.append(
                f"at step {number} the memory did not suffice for {self.budget} tokens at once: steps were split "
                "into smaller pieces; the result is the same"
            )
        self.budget //= 2

    def update(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Adds up gradients over the processes, clips them to `max_grad_norm`, and makes the step."""
        # First the sum, then the clipping: the norm is that of the gradient of the complete step, and every rank
        # multiplies by the same factor min(1, max_grad_norm / norm).
        sums = self._ranks.all_reduce_gradients(self.parameters, sums)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._section.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums, norm
