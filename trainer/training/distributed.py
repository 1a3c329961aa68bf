"""Training on several ranks: which rank computes which rows, and the exchange of an optimizer step.

Only the adapter is trained. Each rank computes the gradients of its share of a step's rows, divided by the trained
tokens of the step on all ranks, which every rank knows from the plan. One all-reduce adds them up. After it all
ranks do the same update with the same numbers, so their adapters stay equal bit by bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, distributed

from trainer.errors import ErrorCode, JobError
from trainer.training.rank import ProcessRank

TIMEOUT: Final = timedelta(minutes=30)
"""How long a rank waits for another that is alive, such as the one that samples. A dead one is noticed at once."""

_INTERFACE: Final = "lo"

_SEED_FACTOR: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: spreads consecutive numbers over all 64-bit ones (Knuth, TAOCP 6.4)."""


@dataclass(frozen=True)
class RankShare:
    """The rows of an optimizer step that one rank computes.

    Attributes:
        rows: the rank's rows, in the step's order.
        target_counts: trained tokens of each row of the step, on all ranks.
        input_tokens: tokens of the step's rows, on all ranks.
        forward_passes: minimum number of times that the rank must run the model. With a sharded base model all
            ranks must run it equally often, because each layer is gathered from all of them.
        idle: whether the rank has no rows of its own, and runs the model on some row with weight 0.
    """

    rows: list[int]
    target_counts: list[int]
    input_tokens: int
    forward_passes: int = 0
    idle: bool = False

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of the step, on all ranks."""
        return sum(self.target_counts)

    def weighted_slices(self, slices: Sequence[slice]) -> Iterator[tuple[slice, float]]:
        """Yields each micro-batch with the weight of its loss: 0 where the model runs only for the other ranks.

        Args:
            slices: the micro-batches of `rows`.
        """
        for rows in slices:
            yield rows, 0.0 if self.idle else 1.0
        # The first micro-batch again, which has the shortest rows. A rank that stopped here would leave the others
        # waiting in their next all-gather.
        for _ in range(self.forward_passes - len(slices)):
            yield slices[0], 0.0


@dataclass(frozen=True)
class RankGroup:
    """This rank among those that train together. With `size` 1 nothing is exchanged.

    Attributes:
        rank: number of this rank, from 0.
        size: number of ranks.
        sharded: whether the base model's layers are sharded over the ranks.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    def share_rows(
        self,
        rows: Sequence[int],
        lengths: Sequence[int],
        target_counts: Sequence[int],
        split: Callable[[Sequence[int]], Sequence[object]],
        *,
        rows_per_unit: int = 1,
    ) -> RankShare:
        """Returns this rank's share of a step: about as many tokens as the others'.

        Args:
            rows: the step's rows, sorted by length.
            lengths: tokens of each row of the dataset.
            target_counts: trained tokens of each row of the dataset.
            split: splits rows of some lengths into micro-batches.
            rows_per_unit: number of consecutive rows that are never separated; divides the number of rows.
        """
        step_counts, input_tokens = (
            [target_counts[row] for row in rows],
            sum(lengths[row] for row in rows),
        )
        shares = balance_rows(rows, lengths, self.size, rows_per_unit=rows_per_unit)
        own = shares[self.rank]
        if not self.sharded:
            return RankShare(own, step_counts, input_tokens)
        # Every rank knows all lengths, so each computes the same maximum and nothing is exchanged for it.
        most_passes = max(len(split([lengths[row] for row in share])) for share in shares if share)
        own_or_first = own or list(rows[:rows_per_unit])
        return RankShare(
            own_or_first, step_counts, input_tokens, forward_passes=most_passes, idle=not own
        )

    def all_reduce_gradients(self, parameters: Sequence[Tensor], sums: Tensor) -> Tensor:
        """Replaces the parameters' gradients by their sum over the ranks.

        There is one exchange, of all gradients and the sums concatenated in float32; nothing waits for the device.

        Args:
            parameters: the adapter; one without a gradient counts as zero.
            sums: float64 [n] on the device, such as the losses.

        Returns:
            `sums` added up over the ranks.
        """
        if self.size == 1:
            return sums
        gradients = [
            torch.zeros_like(item) if item.grad is None else item.grad for item in parameters
        ]
        # A float64 is sent as two float32: its rounded value and the rest, which add up to 48 of its 53 bits.
        high = sums.float()
        flat = torch.cat(
            [*(gradient.reshape(-1) for gradient in gradients), high, (sums - high).float()]
        )
        self.all_reduce(flat)
        *reduced, high, low = torch.split(
            flat, [item.numel() for item in (*parameters, sums, sums)]
        )
        for parameter, gradient in zip(parameters, reduced, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return high.double() + low.double()

    def all_reduce(self, values: Tensor) -> Tensor:
        """Adds up values over the ranks, in place, and returns them.

        Raises:
            JobError: `WORKER_DIED`: another rank is gone.
        """
        if self.size > 1:
            with _reporting_lost_rank():
                distributed.all_reduce(values)
        return values

    def broadcast_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Replaces the parameters of each rank by those of rank 0, so that all begin with the same adapter.

        Raises:
            JobError: `WORKER_DIED`: another rank is gone.
        """
        if self.size == 1:
            return
        with _reporting_lost_rank(), torch.no_grad():
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), src=0)

    def seed_rank(self, seed: int, step: int) -> None:
        """Gives each rank its own dropout and noise for one optimizer step.

        Rank 0 continues with the generator that a run on one rank would have. The seed of every other rank follows
        from the step's number, so that a checkpoint of rank 0's generator is enough to resume all.

        Args:
            seed: seed of the job spec.
            step: number of the step.
        """
        if self.rank > 0:
            # seed * size + rank differs for each pair of seed and rank, because rank < size. The mask limits the
            # product to 63 bits: torch refuses seeds of more than 64.
            torch.manual_seed(((seed * self.size + self.rank) * _SEED_FACTOR + step) & (2**63 - 1))


ALONE: Final = RankGroup()


def balance_rows(
    rows: Sequence[int], lengths: Sequence[int], size: int, *, rows_per_unit: int = 1
) -> list[list[int]]:
    """Distributes rows over ranks so that each gets about equally many tokens.

    Assigns the longest unit first, each to the rank with the fewest tokens so far ("longest processing time
    first", Graham 1969: at most 4/3 of the best possible maximum).

    Args:
        rows: sorted by length.
        lengths: tokens of each row of the dataset.
        size: number of ranks.
        rows_per_unit: number of consecutive rows that are never separated; divides the number of rows.

    Returns:
        The rows of each rank, sorted by length.
    """
    shares: list[list[Sequence[int]]] = [[] for _ in range(size)]
    tokens = [0] * size
    for start in reversed(range(0, len(rows), rows_per_unit)):
        unit = rows[start : start + rows_per_unit]
        # `index` finds the first of equal ranks, so that every rank computes the same distribution.
        least_loaded = tokens.index(min(tokens))
        shares[least_loaded].append(unit)
        tokens[least_loaded] += sum(lengths[row] for row in unit)
    # Units came longest first; reversed they are in the step's order again.
    return [[row for unit in reversed(share) for row in unit] for share in shares]


@contextmanager
def join_rank_group(
    process: ProcessRank, rendezvous: Path, *, sharded: bool
) -> Iterator[RankGroup]:
    """Joins the other ranks, over the loopback interface alone; on a machine with GPUs each rank takes its own.

    Args:
        process: number of this rank and of all ranks.
        rendezvous: directory that all ranks see.
        sharded: as in `RankGroup`.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: fewer GPUs than ranks; `WORKER_DIED`: another rank is gone.
    """
    if process.size == 1:
        yield ALONE
        return
    backend = "nccl" if _take_device(process) else "gloo"
    os.environ.update({"GLOO_SOCKET_IFNAME": _INTERFACE, **_NCCL_ENVIRONMENT})
    with _reporting_lost_rank():
        distributed.init_process_group(
            backend,
            init_method=(rendezvous / "meeting").as_uri(),
            rank=process.rank,
            world_size=process.size,
            timeout=TIMEOUT,
        )
    yield RankGroup(process.rank, process.size, sharded)
    # Not after an error: closing may wait for ranks that no longer answer, and the process ends anyway.
    distributed.destroy_process_group()


_NCCL_ENVIRONMENT: Final = {
    "NCCL_SOCKET_IFNAME": _INTERFACE,
    "NCCL_IB_DISABLE": "1",  # no InfiniBand: nothing leaves the VM
    "NCCL_SHM_DISABLE": "1",  # /dev/shm is closed to a worker
    "NCCL_CUMEM_ENABLE": "0",  # it hands memory over through unix sockets, which are closed too
    "NCCL_NET_PLUGIN": "none",  # a plugin is a library that NCCL would look for and load
}


def _take_device(process: ProcessRank) -> bool:
    """Takes this rank's GPU and returns True; without GPUs, takes its part of the CPU cores and returns False."""
    if not torch.cuda.is_available():
        # torch starts a thread for each core; with that many in every rank they would wait for each other.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // process.size))
        return False
    found = torch.cuda.device_count()
    if found < process.size:
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "train.num_processes is more than there are GPUs",
            expected=f"{process.size} GPUs",
            found=found,
        )
    torch.cuda.set_device(process.rank)
    return True


@contextmanager
def _reporting_lost_rank() -> Iterator[None]:
    """Turns errors of an exchange into `WORKER_DIED`."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no type of their own for it
        raise JobError(
            ErrorCode.WORKER_DIED, "another process of this training is gone", hint="see job.log"
        ) from error
