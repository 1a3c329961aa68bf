"""Task metrics in a complete run: their figures in report and card, and a training that does not notice them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.local_runs import Runs, same
from trainer.errors import DataError, ErrorCode
from trainer.receipt.result_files import require_result_file
from trainer.training.report.summary import Summary
from trainer.training.task_evaluation import TaskEvaluation, TaskMeasurement

MakeRuns = Callable[..., Runs]
METRICS = {
    "metrics": ["exact_match", "token_f1", "choice_accuracy"],
    "max_new_tokens": 6,
    "max_rows": 4,
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def classes(path: Path) -> Path:
    """Forty questions whose answer is one of two."""
    return write(
        path,
        [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": f"Is {number} even" + " indeed" * (number % 5) + "?",
                    },
                    {"role": "assistant", "content": "yes" if number % 2 == 0 else "no"},
                ]
            }
            for number in range(40)
        ],
    )


def without_task(summary: Summary) -> dict[str, Any]:
    return summary.model_dump(exclude={"task", "seconds"})


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
@pytest.mark.parametrize(
    "sections",
    [
        {"lora": {"lora_dropout": 0.2}},
        {
            "data": {"packing": True},
            "train": {"gradient_checkpointing": True, "neftune_noise_alpha": 5.0},
        },
        {
            "lora": {"init_lora_weights": "pissa"},
            "train": {"eval_steps": 2, "load_best_model_at_end": True},
        },
        {
            "privacy": {"noise_multiplier": 1.0, "target_delta": 1e-3},
            "data": {"split_turns": "never"},
        }
        | {"train": {"max_steps": 2, "engine": "transformers"}},
    ],
    ids=["dropout", "packed, checkpointing", "pissa, best", "private"],
)
def test_the_adapter_is_bitwise_that_of_a_run_without(
    runs: MakeRuns, tmp_path: Path, sections: dict[str, Any]
) -> None:
    file = classes(tmp_path / "classes.jsonl")
    plain, measured = (runs(file, **sections, **more)() for more in ({}, {"evaluation": METRICS}))
    assert plain.summary is not None
    assert measured.summary is not None
    assert (plain.summary.task, "task" in plain.summary.seconds) == (None, False)
    if "privacy" not in sections:  # whose noise is another one in each run
        assert measured.adapter == plain.adapter
        assert measured.curve == plain.curve
        assert without_task(measured.summary) == without_task(plain.summary)
    task = measured.summary.task
    assert task is not None
    assert (task.judged, task.choices) == (4, 2)
    assert task.not_judged == {"not_drawn": measured.summary.rows["eval"] - 4}
    card = (measured.output / "adapter" / "README.md").read_text()
    assert ("held-out choice accuracy after" in card) == ("privacy" not in sections)


def test_what_a_result_has_of_them(runs: MakeRuns, tmp_path: Path) -> None:
    went = runs(
        classes(tmp_path / "classes.jsonl"),
        evaluation=METRICS,
        train={"max_steps": 30, "learning_rate": 0.02},
    )()
    assert went.summary is not None
    assert went.summary.task is not None
    report = went.output / "report"
    assert json.loads((report / "summary.json").read_text())[
        "task"
    ] == went.summary.task.model_dump(mode="json")
    page = (report / "report.html").read_text()
    assert "exact match on held-out rows" in page
    assert "Task metrics: rows" in page
    answers = json.loads((report / "task.json").read_text())
    assert [set(answer) for answer in answers] == [{"prompt", "expected", "answered", "chosen"}] * 4
    assert {answer["expected"] for answer in answers} <= {"yes", "no"}
    right = sum(answer["chosen"] == answer["expected"] for answer in answers)
    assert went.summary.task.after.choice_accuracy == right / 4
    with (report / "task.json").open("rb") as file:
        require_result_file(
            "report/task.json", file, (report / "task.json").stat().st_size, copied={}
        )
    # the base model's figures are those of other weights
    assert went.summary.task.before != went.summary.task.after


def test_a_resumed_run_reports_the_figures_from_before_the_first_step(
    runs: MakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = runs(classes(tmp_path / "classes.jsonl"), evaluation=METRICS)
    uninterrupted = order()
    checkpoint = order.stopped_after(3)
    assert json.loads((checkpoint / "state.json").read_text())["task"] is not None
    measured: list[bool] = []
    measure = TaskEvaluation.measure

    def counted(self: TaskEvaluation, *, as_base: bool = False) -> TaskMeasurement:
        measured.append(as_base)
        return measure(self, as_base=as_base)

    monkeypatch.setattr(TaskEvaluation, "measure", counted)
    same(order(checkpoint), uninterrupted)
    assert measured == [False]


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_judged_answers_are_generated_too(runs: MakeRuns, tmp_path: Path, method: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Is it {number}?", "chosen": "It is.", "rejected": "No idea."}
        for number in range(20)
    ]
    if method == "kto":
        rows = [
            {
                "prompt": f"Is it {number}?",
                "completion": "It is." if number % 2 else "No.",
                "label": number % 2 == 1,
            }
            for number in range(30)
        ]
    went = runs(
        write(tmp_path / "rows.jsonl", rows),
        train={"method": method, "max_steps": 1},
        evaluation={"metrics": ["token_f1"], "max_new_tokens": 4},
    )()
    assert went.summary is not None
    task = went.summary.task
    assert task is not None
    assert (task.choices, task.after.exact_match) == (0, None)
    assert task.judged + task.not_judged.get("undesirable", 0) == went.summary.rows["eval"]
    assert ("undesirable" in task.not_judged) == (method == "kto")


def test_rows_that_no_metric_can_judge_are_refused_before_the_model_is_loaded(
    runs: MakeRuns, tmp_path: Path
) -> None:
    file = write(tmp_path / "text.jsonl", [{"text": f"some text {number}"} for number in range(30)])
    with pytest.raises(DataError, match="no_prompt") as caught:
        runs(file, evaluation={"metrics": ["exact_match"]})()
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE
