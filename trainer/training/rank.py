"""Which of several processes this is, before any of the training stack is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.ipc.worker_messages import TrainingOrder


@dataclass(frozen=True)
class ProcessRank:
    """One of the processes that train together.

    Attributes:
        rank: number of this process, from 0. The first one reports and writes the result.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def own(self, order: TrainingOrder) -> TrainingOrder:
        """The order as this process takes it: what the others write, nobody reads."""
        if self.rank == 0:
            return order
        return order.model_copy(update={"output_dir": rendezvous_dir(order) / str(self.rank)})


def rendezvous_dir(order: TrainingOrder) -> Path:
    """Private directory in which the processes find each other; gone when they have ended."""
    return order.output_dir / ".ranks"
