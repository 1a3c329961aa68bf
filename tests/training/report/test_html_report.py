"""The report page: complete, self-contained, and safe to open."""

from __future__ import annotations

import io
import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.receipt.result_files import require_result_file
from trainer.receipt.static_page import require_static_page
from trainer.spec import JobSpec, MethodName
from trainer.training.events import MetricsMeasured, StepCompleted, TrainingEvent
from trainer.training.methods.registry import METHODS
from trainer.training.report.charts import Curve, nice_ticks, render_line_chart, trailing_mean
from trainer.training.report.html_report import render_page, write_report
from trainer.training.report.metrics_recorder import MetricsRecorder
from trainer.training.report.samples import Sample
from trainer.training.report.summary import Summary, shared_by_providers, shared_metrics
from trainer.training.task_summary import TaskSummary

METRICS = [
    MetricsMeasured(step=0, values={"eval_loss": 3.5}),
    *(
        MetricsMeasured(
            step=step,
            values={"loss": 3.5 - step / 50, "learning_rate": 1e-3, "grad_norm": 1.0, "epoch": 0.1},
        )
        for step in range(1, 61)
    ),
    MetricsMeasured(step=60, values={"eval_loss": 2.25}),
]


@pytest.fixture
def summary() -> Summary:
    return Summary(
        eval_loss_before=3.5,
        eval_loss_after=2.25,
        train_loss=2.9,
        trained_tokens=12345,
        input_tokens=23456,
        steps=60,
        rows={"train": 90, "eval": 10, "dropped": 0, "truncated": 0},
        tokens={"shortest": 3, "longest": 99},
        seconds={"train": 12.5, "total": 15.25},
        environment={"torch": "2", "device": "<b>CPU</b>"},
        warnings=("1 of 2 rows & <script>alert(1)</script>",),
    )


class Page(HTMLParser):
    """Collects tags and what they would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [
            value or ""
            for name, value in attrs
            if name in {"src", "href", "srcset", "data", "action"}
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_preference_training_shows_how_well_pairs_are_told_apart(
    summary: Summary, make_spec: Callable[..., JobSpec]
) -> None:
    pairs = {"eval_rewards_accuracies": 0.875, "eval_rewards_margins": 1.5}
    values = {"loss": 0.5, "rewards_chosen": 1.0, "rewards_rejected": -1.0, "rewards_accuracies": 0.75,
              "rewards_margins": 2.0}  # fmt: skip
    metrics = [
        MetricsMeasured(step=1, values=values),
        MetricsMeasured(step=2, values={**values, "loss": 0.4}),
        MetricsMeasured(step=2, values={"eval_loss": 0.6, **pairs}),
    ]
    html = render_page(
        summary.model_copy(update={"pairs": pairs}), metrics, make_spec(train={"method": "dpo"})
    )
    text = " ".join(Page(html).text)
    for shown in (
        "LoRA by DPO",
        "88%",
        "1.500",
        "Reward margin",
        "Reward accuracy",
        "chosen",
        "mean over pairs",
    ):
        assert shown in text
    assert "perplexity" not in text
    plain = render_page(summary, METRICS, make_spec())
    assert "Reward" not in plain


def test_the_page_stands_alone(summary: Summary, make_spec: Callable[..., JobSpec]) -> None:
    html = render_page(summary, METRICS, make_spec())
    page = Page(html)
    assert page.loaded == []
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert "url(" not in html
    assert "://" not in html
    text = " ".join(page.text)
    for shown in (
        "3.5000 → 2.2500",
        "12,345",
        "a local model, model.safetensors of",
        "alert(1)",
        "Loss",
    ):
        assert shown in text


def test_the_page_has_the_form_that_the_provider_demands(
    summary: Summary, make_spec: Callable[..., JobSpec]
) -> None:
    evil = '\x1b[31m \x9b <script>alert(1)</script> " onclick=x'
    samples = [Sample(prompt=evil, before=evil, after=evil, reference=evil)]
    for method in ("sft", "dpo", "orpo"):
        for shown in ([], samples):
            require_static_page(
                render_page(summary, METRICS, make_spec(train={"method": method}), shown)
            )
    html = render_page(summary, METRICS, make_spec(), samples).encode()
    require_result_file("report/report.html", io.BytesIO(html), len(html), copied={})


def test_without_an_evaluation_there_is_no_arrow(
    summary: Summary, make_spec: Callable[..., JobSpec]
) -> None:
    without = summary.model_copy(
        update={"eval_loss_before": None, "eval_loss_after": None, "warnings": ()}
    )
    html = render_page(without, METRICS[1:-1], make_spec())
    assert "→" not in html
    assert "<h2>Warnings" not in html


def test_files_are_written(
    summary: Summary, make_spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    forwarded: list[TrainingEvent] = []
    with MetricsRecorder(tmp_path / "report", forwarded.append) as recorder:
        recorder(StepCompleted(step=1, total_steps=2))
        for message in METRICS:
            recorder(message)
    write_report(tmp_path / "report", summary, recorder.metrics, make_spec())
    lines = (tmp_path / "report" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": item.step, **item.values} for item in METRICS
    ]
    assert len(forwarded) == len(METRICS) + 1
    assert (
        Summary.model_validate_json((tmp_path / "report" / "summary.json").read_bytes()) == summary
    )


numbers = st.floats(-1e9, 1e9)


@given(numbers, numbers)
def test_ticks_are_even_and_cover_the_span(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    steps = [second - first for first, second in itertools.pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@given(st.lists(st.tuples(st.integers(0, 1000), numbers), min_size=1, max_size=30))
def test_any_curve_is_drawn_inside_the_picture(points: list[tuple[int, float]]) -> None:
    curve = Curve("a <label> & more", [(float(x), y) for x, y in sorted(points)], "main", dots=True)
    svg, _, legend = render_line_chart([curve], x_label="step").partition("<p class=legend>")
    root = ElementTree.fromstring(svg.replace("class=grid", 'class="grid"'))
    for circle in root.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 640
        assert 0 <= float(circle.attrib["cy"]) <= 260
    assert "a &lt;label&gt; &amp; more" in legend


def test_no_points_no_chart() -> None:
    assert render_line_chart([Curve("x", [], "main")], x_label="step") == ""


def test_smoothing_is_a_trailing_mean() -> None:
    assert trailing_mean([(1.0, 2.0), (2.0, 4.0), (3.0, 9.0)], 2) == [
        (1.0, 2.0),
        (2.0, 3.0),
        (3.0, 6.5),
    ]


def test_samples_stand_side_by_side_and_are_text(
    summary: Summary, make_spec: Callable[..., JobSpec]
) -> None:
    sample = Sample("Who <i>is</i> it?", "the row's", "base's <script>", "tuned")
    html = render_page(summary, METRICS, make_spec(), (sample,))
    page = Page(html)
    assert "script" not in page.tags
    text = " ".join(page.text)
    for shown in ("Who <i>is</i> it?", "the row's", "base's <script>", "tuned", "33.12 → 9.49"):
        assert shown in text


def test_samples_command_no_terminal(
    tmp_path: Path, summary: Summary, make_spec: Callable[..., JobSpec]
) -> None:
    sample = Sample("p", "r", "b", "\x9b31m\x7f\x1b")
    write_report(tmp_path, summary, METRICS, make_spec(), (sample,))
    data = (tmp_path / "samples.json").read_bytes()
    require_result_file("report/samples.json", io.BytesIO(data), len(data), copied={})
    assert json.loads(data)[0]["after"] == "\x9b31m\x7f\x1b"


def test_samples_are_kept_as_data(
    tmp_path: Path, summary: Summary, make_spec: Callable[..., JobSpec]
) -> None:
    write_report(tmp_path, summary, METRICS, make_spec(), (Sample("ü?", "a", "b", "c"),))
    kept = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert kept == [{"prompt": "ü?", "reference": "a", "before": "b", "after": "c"}]


def test_what_providers_share_of_the_metrics_is_listed(tmp_path: Path) -> None:
    """One that is added later stays out. A fraction of pairs tells how many there are."""
    sent: list[Any] = []
    measured = MetricsMeasured(
        step=2,
        values={
            "loss": 1.0, "eval_loss": 2.0, "learning_rate": 0.1, "epoch": 0.25, "rows_seen": 7.0,
            "rewards_accuracies": 0.5, "eval_rewards_accuracies": 2 / 3, "eval_rewards_margins": 0.1,
        },
    )  # fmt: skip
    kept = {"loss", "eval_loss", "learning_rate", "eval_rewards_margins"}
    with MetricsRecorder(tmp_path, sent.append, shared=shared_metrics(METHODS["dpo"])) as recorder:
        recorder(measured)
        assert recorder.metrics[0].values.keys() == sent[0].values.keys() == kept
    with MetricsRecorder(tmp_path, sent.append) as recorder:
        recorder(measured)
        assert recorder.metrics == [measured]


@pytest.mark.parametrize("method", METHODS)
def test_all_other_metrics_of_the_charts_are_shared(method: MethodName) -> None:
    charts = {name for chart in METHODS[method].words.charts for _label, name in chart.lines}
    hidden = charts - shared_metrics(METHODS[method])
    assert all(name.endswith("rewards_accuracies") for name in hidden)


def test_what_providers_share_of_a_summary_is_listed(summary: Summary) -> None:
    """One that is added later stays out; one that cannot be left empty ends the job."""
    pairs = {"eval_rewards_margins": 0.1, "eval_rewards_accuracies": 2 / 3, "eval_pairs": 90.0}
    mixed = summary.model_copy(update={"mix": {"a": {"rows": 90}}, "pairs": pairs})
    shared = shared_by_providers(mixed, METHODS["dpo"])
    assert shared.pairs == {"eval_rewards_margins": 0.1}
    assert "90" not in shared.model_dump_json()
    assert "99" not in shared.model_dump_json()
    kept = {name for name in Summary.model_fields if getattr(shared, name) == getattr(mixed, name)}
    assert kept.isdisjoint({"rows", "mix", "tokens", "seconds", "warnings"})
    assert shared.eval_loss_after == summary.eval_loss_after
    task_summary: Any = TaskSummary
    with pytest.raises(ValueError, match="Field required"):
        shared_by_providers(
            summary.model_copy(update={"task": task_summary.model_construct()}), METHODS["sft"]
        )
