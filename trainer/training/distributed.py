"""Training in several processes: who takes which rows, and the one exchange of an optimizer step.

Only the adapter is trained. Each process computes gradients of its share of a step's rows, divided by the trained
tokens of the *whole* step, which each knows from the plan; then they are added up, once, in one piece. After that
all do the same with the same numbers, so their adapters stay equal bit by bit.
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
"""How long one waits for another that lives: sampling falls in between. One that died is noticed at once."""

_INTERFACE: Final = "lo"
_MIX: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: spreads neighbouring numbers over all 64-bit ones (Knuth, TAOCP 6.4)."""


@dataclass(frozen=True)
class RankShare:
    """What one process has to do with a step.

    Attributes:
        rows: its rows, in the step's order.
        counts: of each row of the whole step, on all processes, how many tokens are trained on.
        inputs: tokens read in the whole step.
        passes: how often the model is run at least; more often than the rows need where all must run it alike.
        idle: whether the rows are there only to run the model, and count nothing.
    """

    rows: list[int]
    counts: list[int]
    inputs: int
    passes: int = 0
    idle: bool = False

    @property
    def trained(self) -> int:
        """Tokens trained on in the whole step."""
        return sum(self.counts)

    def runs(self, slices: Sequence[slice]) -> Iterator[tuple[slice, float]]:
        """What goes through the model, each with its weight: 0 where it only keeps step with the others."""
        for rows in slices:
            yield rows, 0.0 if self.idle else 1.0
        for _ in range(self.passes - len(slices)):
            yield slices[0], 0.0


@dataclass(frozen=True)
class RankGroup:
    """This process among those that train together; with `size` 1 nothing is exchanged.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        sharded: whether the base model's layers are spread over them, so that all must run it equally often.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    def share(
        self,
        rows: Sequence[int],
        lengths: Sequence[int],
        counts: Sequence[int],
        passes: Callable[[Sequence[int]], int],
        *,
        rows_per_unit: int = 1,
    ) -> RankShare:
        """This process's share of a step, of as many tokens as the others' where rows allow it.

        Args:
            rows: the step's, sorted by length.
            lengths: tokens of each row there is.
            counts: how many of them are trained on.
            passes: how often rows of some lengths make the model run.
            rows_per_unit: so many neighbours are never separated; the number of rows is a multiple of it.
        """
        trained, inputs = [counts[row] for row in rows], sum(lengths[row] for row in rows)
        shares = deal(rows, lengths, self.size, rows_per_unit=rows_per_unit)
        own = shares[self.rank]
        if not self.sharded:
            return RankShare(own, trained, inputs)
        most = max(passes([lengths[row] for row in share]) for share in shares if share)
        return RankShare(own or list(rows[:rows_per_unit]), trained, inputs, passes=most, idle=not own)

    def add_up(self, parameters: Sequence[Tensor], sums: Tensor) -> Tensor:
        """Replace gradients by their sum over the processes; returns that of `sums`, float64 [n], on the device.

        One exchange, of all gradients and the sums behind one another in float32; nothing waits for the device.
        """
        if self.size == 1:
            return sums
        own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        high = sums.float()
        whole = torch.cat([*(one.reshape(-1) for one in own), high, (sums - high).float()])
        self.sum(whole)
        *parts, high, low = torch.split(whole, [one.numel() for one in (*parameters, sums, sums)])
        for one, part in zip(parameters, parts, strict=True):
            one.grad = part.view_as(one)
        return high.double() + low.double()

    def sum(self, values: Tensor) -> Tensor:
        """Add up over the processes, in place.

        Raises:
            JobError: `WORKER_DIED`: another process is gone.
        """
        if self.size > 1:
            with _losing_another():
                distributed.all_reduce(values)
        return values

    def take_first(self, parameters: Sequence[Tensor]) -> None:
        """Put the first process's values in place of this one's, so that all begin alike.

        Raises:
            JobError: `WORKER_DIED`: another process is gone.
        """
        if self.size == 1:
            return
        with _losing_another(), torch.no_grad():
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), src=0)

    def draw_apart(self, seed: int, step: int) -> None:
        """Let this process draw other noise and dropout than the rest, in this step.

        The first one draws on as it would alone. What the others draw follows from the step's number, so that the
        state of the first is the state of all.
        """
        if self.rank > 0:
            torch.manual_seed(((seed * self.size + self.rank) * _MIX + step) & (2**63 - 1))


ALONE: Final = RankGroup()


def deal(rows: Sequence[int], lengths: Sequence[int], size: int, *, rows_per_unit: int = 1) -> list[list[int]]:
    """Split rows, sorted by length, into `size` shares of about equal tokens, each in the same order.

    The longest first, each to whoever has the fewest tokens so far (Graham 1969, "longest processing time"); so
    many neighbours `rows_per_unit`.
    """
    shares: list[list[Sequence[int]]] = [[] for _ in range(size)]
    tokens = [0] * size
    for start in reversed(range(0, len(rows), rows_per_unit)):
        unit = rows[start : start + rows_per_unit]
        least = tokens.index(min(tokens))
        shares[least].append(unit)
        tokens[least] += sum(lengths[row] for row in unit)
    return [[row for unit in reversed(share) for row in unit] for share in shares]


@contextmanager
def join_rank_group(seat: ProcessRank, place: Path, *, sharded: bool) -> Iterator[RankGroup]:
    """Meet the other processes, over `lo` alone; on GPUs each takes the one of its number.

    Args:
        seat: which process this is.
        place: a directory that all of them see.
        sharded: see `RankGroup`.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`: fewer GPUs than processes; `WORKER_DIED`: another process is gone.
    """
    if seat.size == 1:
        yield ALONE
        return
    backend = "nccl" if _takes_gpu(seat) else "gloo"
    os.environ.update({"GLOO_SOCKET_IFNAME": _INTERFACE, **_NCCL})
    with _losing_another():
        distributed.init_process_group(
            backend,
            init_method=(place / "meeting").as_uri(),
            rank=seat.rank,
            world_size=seat.size,
            timeout=TIMEOUT,
        )
    yield RankGroup(seat.rank, seat.size, sharded)
    distributed.destroy_process_group()


_NCCL: Final = {
    "NCCL_SOCKET_IFNAME": _INTERFACE,
    "NCCL_IB_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",  # /dev/shm is closed to a worker
    "NCCL_CUMEM_ENABLE": "0",  # hands memory over through unix sockets, which are closed too
    "NCCL_NET_PLUGIN": "none",
}


def _takes_gpu(seat: ProcessRank) -> bool:
    """Whether there are GPUs; if so, this process has taken its own. On a CPU it takes its part of the cores."""
    if not torch.cuda.is_available():
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // seat.size))
        return False
    found = torch.cuda.device_count()
    if found < seat.size:
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "train.num_processes is more than there are GPUs",
            expected=f"{seat.size} GPUs",
            found=found,
        )
    torch.cuda.set_device(seat.rank)
    return True


@contextmanager
def _losing_another() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL say so in words only
        raise JobError(
            ErrorCode.WORKER_DIED, "another process of this training is gone", hint="see job.log"
        ) from error
