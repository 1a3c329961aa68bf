"""How an optimizer step is made: which rows it takes, and how their gradients become an update of the adapter.

`PlainStepPolicy` goes through the rows in epochs, adds up gradients and clips their sum. Differential privacy is
another policy, in `trainer.training.privacy.private_step_policy`. The loop around the steps is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
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
from trainer.training.token_store import SECTION_TOKENS, TokenStore

if TYPE_CHECKING:
    from trainer.training.privacy.privacy_findings import DifferentialPrivacy


class StepPolicy(ABC):
    """Makes the optimizer steps of one run.

    Attributes:
        parameters: the trained parameters, in the model's order.
        optimizer: updates them.
        plan: the units of each step, and how many steps there are.
        budget: how many tokens a micro-batch may have.
        warnings: what the provider should know; the trainer adds its own.
        keeps_state: whether the state between two steps may be written down, and an adapter be handed out after a
            divergence.
    """

    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    plan: StepPlan
    budget: int
    warnings: list[str]
    keeps_state: bool

    @property
    def device(self) -> torch.device:
        """Returns the device of the trained parameters."""
        return self.parameters[0].device

    @abstractmethod
    def steps(self, done: int) -> Iterator[StepRows]:
        """Yields the rows of each step after the first `done` ones."""

    @abstractmethod
    def compute_gradients(self, step: StepRows, number: int, random: tuple[Tensor, ...]) -> Tensor:
        """Compute the gradients of this process's rows; the parameters do not change.

        Args:
            step: the rows.
            number: the step's number, from 1.
            random: states of torch's generators before the step, to compute it again from.

        Returns:
            float64 [n] on the device, as `Method.compute_gradients`.
        """

    @abstractmethod
    def update(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Update the parameters by the gradients, at the optimizer's learning rate, and clear the gradients.

        Args:
            sums: what `compute_gradients` returned.

        Returns:
            The sums over all processes, and the norm of the gradients before clipping; both on the device.
        """

    def privacy_spent(self, steps: int) -> DifferentialPrivacy | None:  # noqa: ARG002 -- for policies that spend any
        """Returns what `steps` steps spent of a privacy budget; None where there is no budget."""
        return None

    def close(self) -> None:  # noqa: B027 -- most policies leave nothing on the model
        """Remove what the policy attached to the model."""


class PlainStepPolicy(StepPolicy):
    """Takes rows in epochs, adds up their gradients over micro-batches and processes, clips the sum and steps.

    Args:
        model: PEFT model; only its adapter is trained.
        method: computes gradients of rows.
        examples: the training rows.
        section: batch sizes, seed, optimizer, clipping.
        ranks: which of several processes this is; all of them must make the same calls in the same order.
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
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ranks.broadcast_parameters(self.parameters)  # all start from the adapter of rank 0
        self.optimizer = make_optimizer(self.parameters, section)
        self.warnings = []
        self._method = method
        self._section = section
        self._ranks = ranks
        self._store = TokenStore(examples, self.device)
        lengths = [sum(self._store.lengths[row] for row in unit) for unit in method.units]
        self.plan = StepPlan(lengths, section, ranks.size)
        self.budget = token_budget(max(lengths) * section.per_device_train_batch_size, self.device)

    def steps(self, done: int) -> Iterator[StepRows]:
        """Yields the rows of each step after the first `done` ones; what they are depends on the seed alone."""
        return _upload_sections(map(self._share, self.plan.steps(done)), self._store)

    def _share(self, units: Sequence[int]) -> RankShare:
        rows_per_unit = self._method.rows_per_unit
        lengths = self._store.lengths
        step_units = [self._method.units[unit] for unit in units]
        rows = sort_rows(step_units, lengths, keep_units=rows_per_unit > 1)
        return self._ranks.share_rows(
            rows,
            lengths,
            self._store.target_counts,
            lambda row_lengths: len(self._method.split(row_lengths, self.budget)),
            rows_per_unit=rows_per_unit,
        )

    def compute_gradients(self, step: StepRows, number: int, random: tuple[Tensor, ...]) -> Tensor:
        """Compute the gradients; where memory is exhausted, compute the step again in smaller micro-batches.

        The result is the same for every size: the loss is a sum, divided by what the whole step has. With a
        sharded base model no process can retry alone, since the others wait for it.

        Raises:
            RuntimeError, MemoryError: memory is exhausted with one row per micro-batch.
        """
        while True:
            try:
                self._ranks.seed_rank(self._section.seed, number)
                return self._method.compute_gradients(step, self.budget)
            except (RuntimeError, MemoryError) as error:
                cannot_shrink = self._ranks.sharded or self.budget <= max(step.ordered.lengths[step.rows])
                if cannot_shrink or not is_out_of_memory(error):
                    raise
            self._shrink_budget(number)
            restore_random(random)  # dropout and noise are drawn as in the first attempt

    def _shrink_budget(self, number: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self.warnings:
            self.warnings.append(
                f"at step {number} the memory did not suffice for {self.budget} tokens at once: steps were split "
                "into smaller pieces; the result is the same"
            )
        self.budget //= 2

    def update(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Add up over the processes, clip to `max_grad_norm`, and step."""
        sums = self._ranks.all_reduce_gradients(self.parameters, sums)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._section.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums, norm


def _upload_sections(shares: Iterable[RankShare], store: TokenStore) -> Iterator[StepRows]:
    """Put the rows of many steps on the device in the order of use, `SECTION_TOKENS` at a time.

    One upload for many steps keeps the single step free of copies from the host.
    """
    section: list[RankShare] = []
    tokens = 0
    for share in shares:
        section.append(share)
        tokens += sum(store.lengths[row] for row in share.rows)
        if tokens >= SECTION_TOKENS:
            yield from _upload_section(section, store)
            section, tokens = [], 0
    yield from _upload_section(section, store)


def _upload_section(section: Sequence[RankShare], store: TokenStore) -> Iterator[StepRows]:
    if not section:
        return
    ordered = store.reorder([row for share in section for row in share.rows])
    start = 0
    for share in section:
        yield StepRows(ordered, slice(start, start + len(share.rows)), share)
        start += len(share.rows)
