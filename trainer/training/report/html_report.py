"""The report: `metrics.jsonl` while the run goes on, `summary.json` and `report.html` at its end.

The page stands alone: styles and pictures are inside, no script, nothing is fetched when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from trainer.spec import JobSpec
from trainer.training.events import MetricsMeasured, TrainingEvent
from trainer.training.methods.method import MethodWords
from trainer.training.methods.registry import METHODS
from trainer.training.report.charts import Curve, Point, line_chart, smoothed
from trainer.training.report.model_card import perplexity
from trainer.training.report.privacy_page import Losses, privacy_section
from trainer.training.report.samples import Sample
from trainer.training.report.summary import Summary


class MetricsRecorder:
    """Passes messages on, and keeps the metrics among them: in memory and as lines of `metrics.jsonl`.

    Args:
        directory: the report's directory; made if absent.
        forward: gets every message.
        earlier: metrics of the same run, from before an interruption.
    """

    def __init__(
        self, directory: Path, forward: Callable[[TrainingEvent], None], earlier: Sequence[MetricsMeasured] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / "metrics.jsonl").open("w", encoding="utf-8")
        self._forward = forward
        self.metrics: list[MetricsMeasured] = []
        for message in earlier:
            self._record(message)

    def __call__(self, message: TrainingEvent) -> None:
        """Record and pass on."""
        if isinstance(message, MetricsMeasured):
            self._record(message)
        self._forward(message)

    def _record(self, message: MetricsMeasured) -> None:
        self.metrics.append(message)
        self._file.write(json.dumps({"step": message.step, **message.values}) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def write_report(
    directory: Path,
    summary: Summary,
    metrics: Sequence[MetricsMeasured],
    spec: JobSpec,
    samples: Sequence[Sample] = (),
    losses: Losses | None = None,
) -> None:
    """Write `summary.json`, `samples.json` and `report.html` into an existing directory."""
    document = summary.model_dump(mode="json")
    shown = [sample.as_dict() for sample in samples]
    page = render_page(summary, metrics, spec, samples, losses)
    (directory / "summary.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (directory / "samples.json").write_text(
        json.dumps(shown, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (directory / "report.html").write_text(page, encoding="utf-8")


def render_page(
    summary: Summary,
    metrics: Sequence[MetricsMeasured],
    spec: JobSpec,
    samples: Sequence[Sample] = (),
    losses: Losses | None = None,
) -> str:
    """The page as one HTML document."""
    parts = (
        _headline(summary, spec),
        _warnings(summary.warnings),
        _charts(metrics, METHODS[spec.train.method].words),
        privacy_section(summary.privacy, losses or {}),
        _samples(samples),
        "<div class=columns>",
        _table("Rows", summary.rows),
        _table("Tokens of a row", summary.tokens),
        _table("Seconds", summary.seconds),
        _table("Environment", summary.environment),
        "</div>",
        _spec(spec),
    )
    return f"<!doctype html><html lang=en><head>{_HEAD}</head><body><main>{''.join(parts)}</main></body></html>\n"


def _headline(summary: Summary, spec: JobSpec) -> str:
    words = METHODS[spec.train.method].words
    figures = [
        ("training loss", _loss(summary.train_loss)),
        ("steps", f"{summary.steps:,}"),
        ("tokens trained on", f"{summary.trained_tokens:,}"),
    ]
    if summary.eval_loss_before is not None and summary.eval_loss_after is not None:
        change = f"{_loss(summary.eval_loss_before)} → {_loss(summary.eval_loss_after)}"
        figures[:0] = [("loss on held-out rows", change), *_beside_the_loss(summary, words)]
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in figures)
    base = escape(spec.model.model_name_or_path)
    title = escape(words.title)
    return f"<h1>Fine-tuning report</h1><p class=base>{title} on {base}</p><section class=tiles>{tiles}</section>"


def _beside_the_loss(summary: Summary, words: MethodWords) -> Iterator[tuple[str, str]]:
    """Yields what the held-out loss means, such as its perplexity, and what else the method measures."""
    for tile in words.tiles:
        if tile.metric in summary.pairs:
            yield tile.label, format(summary.pairs[tile.metric], tile.format)
    if words.has_perplexity and summary.eval_loss_before is not None and summary.eval_loss_after is not None:
        values = (perplexity(summary.eval_loss_before), perplexity(summary.eval_loss_after))
        yield "perplexity on held-out rows", " → ".join(f"{value:.2f}" for value in values)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f"<section class=warnings><h2>Warnings</h2><ul>{items}</ul></section>"


def _charts(metrics: Sequence[MetricsMeasured], words: MethodWords) -> str:
    loss = points(metrics, "loss")
    window = max(1, len(loss) // 20)
    charts = (
        (
            "Loss",
            words.loss_unit,
            (
                Curve("each step", loss, "faint"),
                Curve(f"mean of {window}", smoothed(loss, window) if window > 1 else (), "main"),
                Curve("held-out rows", points(metrics, "eval_loss"), "second", dots=True),
            ),
        ),
        *_method_charts(metrics, words),
        ("Learning rate", "", (Curve("learning rate", points(metrics, "learning_rate"), "main"),)),
        ("Gradient norm", "before clipping", (Curve("norm", points(metrics, "grad_norm"), "main"),)),
        (
            "Throughput",
            "tokens per second, without padding",
            (
                Curve("all tokens", points(metrics, "input_tokens_per_second"), "main"),
                Curve("trained on", points(metrics, "tokens_per_second"), "second"),
            ),
        ),
    )
    return f"<section class=charts>{''.join(_figure(*chart) for chart in charts)}</section>"


_Chart = tuple[str, str, Sequence[Curve]]


def _method_charts(metrics: Sequence[MetricsMeasured], words: MethodWords) -> tuple[_Chart, ...]:
    """Returns the charts of what the method measures; none where nothing was measured."""
    styles = ("main", "second")
    return tuple(
        (
            chart.title,
            chart.unit,
            [
                Curve(label, points(metrics, metric), style, dots=metric.startswith("eval_"))
                for (label, metric), style in zip(chart.lines, styles, strict=False)
            ],
        )
        for chart in words.charts
        if points(metrics, chart.lines[0][1])
    )


def _figure(title: str, unit: str, curves: Sequence[Curve]) -> str:
    chart = line_chart([curve for curve in curves if curve.points], x_label="step")
    note = f" <small>{escape(unit)}</small>" if unit else ""
    return f"<figure><figcaption>{escape(title)}{note}</figcaption>{chart}</figure>" if chart else ""


def _samples(samples: Sequence[Sample]) -> str:
    """Each prompt over what the base model, the trained model and the row itself say to it."""
    if not samples:
        return ""
    cards = "".join(
        f"<article><p class=prompt>{escape(sample.prompt)}</p><div class=answers>"
        f"{_answer('before', sample.before)}{_answer('after', sample.after)}{_answer('the row', sample.reference)}"
        "</div></article>"
        for sample in samples
    )
    return f"<section class=samples><h2>Held-out prompts, answered before and after</h2>{cards}</section>"


def _answer(title: str, text: str) -> str:
    return f"<div><h3>{escape(title)}</h3><p>{escape(text)}</p></div>"


def points(metrics: Sequence[MetricsMeasured], name: str) -> list[Point]:
    """(step, value) of one metric, where it was measured."""
    return [(float(item.step), item.values[name]) for item in metrics if name in item.values]


def _table(title: str, values: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}<td>{_cell(value)}" for name, value in values.items())
    return f"<section><h2>{escape(title)}</h2><table>{rows}</table></section>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _spec(spec: JobSpec) -> str:
    sections = ("lora", "data", "train")
    tables = "".join(_table(name, getattr(spec, name).model_dump(mode="json")) for name in sections)
    return f"<details><summary>Settings</summary><div class=columns>{tables}</div></details>"


def _loss(value: float) -> str:
    return f"{value:.4f}"


_STYLE: Final = """
:root{--ink:#1c2733;--soft:#66727f;--line:#e3e7ec;--paper:#fff;--back:#f5f6f8;--main:#2563a8;--second:#c2571a}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#98a3ae;--line:#323a43;--paper:#1b2026;--back:#13171b;
--main:#6aa7e8;--second:#eb8f50}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{margin:0;font-size:26px;font-weight:650}h2{margin:0 0 8px;font-size:15px;font-weight:650}
.base{margin:2px 0 20px;color:var(--soft)}
.tiles{display:flex;flex-wrap:wrap;gap:14px}
.tiles div,figure,.columns section,.warnings,details{background:var(--paper);border:1px solid var(--line);
border-radius:10px}
.tiles div{flex:1 1 150px;padding:14px 18px}.tiles div:first-child{flex-grow:2}
.tiles b{display:block;font-size:23px;font-weight:600;white-space:nowrap}
.tiles span{color:var(--soft);font-size:13px}
.warnings{margin-top:16px;padding:14px 18px;border-left:4px solid var(--second)}
.warnings ul{margin:0;padding-left:18px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:16px;margin:16px 0}
figure{margin:0;padding:14px 16px 10px}figcaption{font-weight:650;margin-bottom:6px}
small{color:var(--soft);font-weight:400}
svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--line)}polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.main polyline{stroke:var(--main)}.second polyline{stroke:var(--second)}
.faint polyline{stroke:var(--main);stroke-width:1.2;opacity:.45}
.main circle{fill:var(--main)}.second circle{fill:var(--second)}
.legend{margin:4px 0 0;font-size:12.5px;color:var(--soft)}
.key{margin-right:16px}.key::before{content:"";display:inline-block;width:18px;height:3px;margin:0 6px 3px 0;
border-radius:2px;background:var(--main)}.key.second::before{background:var(--second)}
.key.faint::before{opacity:.45}
.samples article{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:14px 18px;
margin-bottom:14px}
.samples p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13.5px}
.samples .prompt{color:var(--soft);padding-bottom:10px;border-bottom:1px solid var(--line);margin-bottom:10px}
.samples h3{margin:0 0 4px;font-size:12.5px;font-weight:600;color:var(--soft)}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:18px}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:16px;align-items:start}
.columns section{padding:14px 18px}
table{width:100%;border-collapse:collapse;font-size:13.5px}
th,td{padding:3px 0;border-top:1px solid var(--line);font-weight:400;text-align:left}
th{color:var(--soft);padding-right:12px}td{text-align:right;font-variant-numeric:tabular-nums;word-break:break-word}
tr:first-child>*{border-top:0}
details{margin-top:16px;padding:12px 18px}summary{cursor:pointer;font-weight:650}details .columns{margin-top:14px}
details .columns section{border:0;padding:0}
"""

_HEAD: Final = (
    '<meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">'
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';style-src 'unsafe-inline'\">"
    f"<title>Fine-tuning report</title><style>{_STYLE}</style>"
)
