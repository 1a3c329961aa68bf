"""`metrics.jsonl`: the metrics of a run, line by line while it trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.training.events import MetricsMeasured, TrainingEvent


class MetricsRecorder:
    """Passes events on and records the metrics among them: in memory, and as lines of `metrics.jsonl`.

    Args:
        directory: the report's directory; it is created if absent.
        forward: receives every event.
        earlier: metrics of the same run from before an interruption; the file begins with them.
        shared: names of the metrics that are recorded and passed on; None: all.

    Attributes:
        metrics: the recorded metrics, in order.
    """

    def __init__(
        self,
        directory: Path,
        forward: Callable[[TrainingEvent], None],
        earlier: Sequence[MetricsMeasured] = (),
        *,
        shared: frozenset[str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / "metrics.jsonl").open("w", encoding="utf-8")
        self._forward = forward
        self._shared = shared
        self.metrics: list[MetricsMeasured] = []
        for event in earlier:
            self._record(event)

    def __call__(self, event: TrainingEvent) -> None:
        """Records an event if it holds metrics, and passes it on."""
        if isinstance(event, MetricsMeasured):
            if self._shared is not None:
                values = {name: event.values[name] for name in event.values if name in self._shared}
                event = event.model_copy(update={"values": values})
            self._record(event)
        self._forward(event)

    def _record(self, event: MetricsMeasured) -> None:
        self.metrics.append(event)
        self._file.write(json.dumps({"step": event.step, **event.values}) + "\n")
        # A process that is killed writes no buffer.
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
