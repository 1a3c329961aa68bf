"""What a person is shown of task metrics: before the data is sent, and of a result."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from trainer.cli.result_commands import _task_line
from trainer.cli.validation_output import ValidationReport, _task_lines
from trainer.data.examples.task_rows import NotJudged
from trainer.spec import JobSpec
from trainer.validation.survey import Survey
from trainer.validation.task_counts import TaskCounts

BEFORE: dict[str, Any] = {"exact_match": 0.125, "token_f1": None, "choice_accuracy": 0, "cut": 3}
TASK: dict[str, Any] = {
    "judged": 40,
    "not_judged": {"not_drawn": 2},
    "choices": 2,
    "before": BEFORE,
    "after": {**BEFORE, "exact_match": 0.5, "choice_accuracy": 1},
}


def test_task_metrics_before_and_after() -> None:
    # RFC 8785 writes 1.0 as 1
    shown = "exact match 12.5% → 50.0%, choice accuracy 0.0% → 100.0%, over 40 held-out rows"
    assert _task_line({"task": TASK, "steps": 3}) == {"task": shown}
    assert _task_line({"task": None}) == _task_line({}) == {}


@pytest.mark.parametrize(
    "task",
    [
        "exact match 100%",
        [],
        {**TASK, "judged": "all"},
        {**TASK, "before": {"exact_match": 2}},
        {"a": "\x1b[2J"},
    ],
)
def test_what_is_no_task_figure_is_not_shown(task: Any) -> None:
    assert _task_line({"task": task}) == {}


def test_validate_says_which_rows_are_judged_and_what_it_costs() -> None:
    model = {
        "model_name_or_path": "./m",
        "model_file_sha256": dict.fromkeys(("config.json", "b.safetensors"), "0" * 64),
    }
    metrics = {"metrics": ["token_f1", "choice_accuracy"], "max_new_tokens": 8}
    spec = JobSpec.model_validate_json(
        json.dumps({"version": 1, "model": model, "evaluation": metrics})
    )
    counts = TaskCounts(10, dict.fromkeys(NotJudged, 2), 3, 500)
    report = ValidationReport(spec, Survey(task=counts), None, None, "", {}, show_example=False)
    lines = list(_task_lines(report, ""))
    assert lines[0].endswith(
        "10 held-out rows judged, before and after training: token_f1, choice_accuracy"
    )
    assert len(lines) == 1 + len(NotJudged) + 2  # a line for every reason
    assert "500 tokens of prompts, and 80 generated at most" in lines[-2]
    assert "30 answers compared, 3 to a row" in lines[-1]
    assert list(_task_lines(dataclasses.replace(report, found=Survey()), "")) == []
