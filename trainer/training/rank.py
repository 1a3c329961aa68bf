"""Which of several training processes this is. Imports none of the training stack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessRank:
    """One of the processes that train one model.

    Attributes:
        rank: number of this process, from 0. Rank 0 reports and writes the result.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def own_output_dir(self, output_dir: Path) -> Path:
        """Returns where this process writes: rank 0 the result, the others files that nobody reads."""
        return output_dir if self.rank == 0 else rendezvous_dir(output_dir) / str(self.rank)


def rendezvous_dir(output_dir: Path) -> Path:
    """Returns the private directory in which the processes of a run find each other; removed when they ended."""
    return output_dir / ".ranks"
