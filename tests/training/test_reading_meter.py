"""What is reported while a dataset is read."""

from __future__ import annotations

from trainer.models import Activity
from trainer.training.events import PreparationAdvanced, TrainingEvent
from trainer.training.reading_meter import ReadingMeter


def test_each_further_percent_of_the_bytes_is_reported_once() -> None:
    events: list[TrainingEvent] = []
    meter = ReadingMeter(1000, events.append)
    for count in (3, 6, 1, 500, 0, 489, 1, 40):  # the last 40 bytes: a file that grew
        meter.add(count)
    assert events == [
        PreparationAdvanced(activity=Activity.TOKENIZING, percent=percent)
        for percent in (1, 51, 99, 100)
    ]


def test_an_empty_dataset_has_no_percent() -> None:
    events: list[TrainingEvent] = []
    ReadingMeter(0, events.append).add(0)
    assert events == []
