"""The number of this process among those that train one model. Imports none of the training stack."""

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
        """Returns the directory that this process writes to; nobody reads the files of ranks other than 0."""
        return output_dir if self.rank == 0 else rendezvous_dir(output_dir) / str(self.rank)


def rendezvous_dir(output_dir: Path) -> Path:
    """Returns the private directory in which the processes of a run find each other; removed after their end."""
    return output_dir / ".ranks"
