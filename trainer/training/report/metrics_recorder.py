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
        hidden: names of metrics that are neither recorded nor passed on.

    Attributes:
        metrics: the recorded metrics, in order.
    """

    def __init__(
        self,
        directory: Path,
        forward: Callable[[TrainingEvent], None],
        earlier: Sequence[MetricsMeasured] = (),
        *,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / "metrics.jsonl").open("w", encoding="utf-8")
        self._forward = forward
        self._hidden = hidden
        self.metrics: list[MetricsMeasured] = []
        for event in earlier:
            self._record(event)

    def __call__(self, event: TrainingEvent) -> None:
        """Records an event if it holds metrics, and passes it on."""
        if isinstance(event, MetricsMeasured):
            shown = {
                name: value for name, value in event.values.items() if name not in self._hidden
            }
            event = event.model_copy(update={"values": shown})
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
