"""The services that the process around a training run provides."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.training.distributed import ALONE, RankGroup
from trainer.training.events import EventHandler
from trainer.training.interruption import Interrupts
from trainer.training.stopwatch import Stopwatch


@dataclass(frozen=True)
class RunContext:
    """The services that the process around a run provides.

    Attributes:
        report: receives the run's events.
        watch: measures the parts of the run since the process received its order.
        interrupts: turns a signal into an interruption, on which the run saves its state.
        ranks: the ranks that train together; rank 0 writes the result.
        allocator: name of the process's memory allocator, for the report.
    """

    report: EventHandler
    watch: Stopwatch
    interrupts: Interrupts = field(default_factory=Interrupts)
    ranks: RankGroup = ALONE
    allocator: str = "system"
