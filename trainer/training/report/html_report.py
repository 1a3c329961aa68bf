"""The report of a run at its end: `summary.json`, `samples.json`, `report.html`.

The page is self-contained. Styles and charts are inside, it has no script, and it loads nothing when it is opened;
its Content-Security-Policy forbids what it does not do. Whatever comes from data or from the job spec is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from trainer.encoding import page_security_policy, without_controls
from trainer.spec import JobSpec
from trainer.training.events import MetricsMeasured
from trainer.training.methods.method import MethodWords
from trainer.training.methods.registry import METHODS
from trainer.training.report.charts import Curve, Point, render_line_chart, trailing_mean
from trainer.training.report.model_card import perplexity
from trainer.training.report.privacy_page import RowLosses, render_privacy_section
from trainer.training.report.samples import Sample
from trainer.training.report.summary import Summary
from trainer.training.report.tables import render_table

_SMOOTHING_WINDOWS: Final = 20
"""The loss is smoothed over this part of a run's points."""


def write_report(
    directory: Path,
    summary: Summary,
    metrics: Sequence[MetricsMeasured],
    spec: JobSpec,
    samples: Sequence[Sample] = (),
    losses: RowLosses | None = None,
) -> None:
    """Writes `summary.json`, `samples.json` and `report.html`.

    Args:
        directory: an existing directory.
        summary: the numbers of the run.
        metrics: its metrics, in order.
        spec: its job spec.
        samples: held-out prompts with their answers.
        losses: what the memorisation audit measured, for its charts.
    """
    write_shown_json(directory / "summary.json", summary.model_dump(mode="json"))
    write_shown_json(directory / "samples.json", [sample.as_dict() for sample in samples])
    page = render_page(summary, metrics, spec, samples, losses)
    (directory / "report.html").write_text(without_controls(page), encoding="utf-8")


def write_shown_json(target: Path, value: object) -> None:
    """Writes JSON that people read as a text."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # JSON leaves DEL and U+0080 to U+009F as they are; their visible escapes are JSON's own.
    target.write_text(without_controls(text), encoding="utf-8")


def render_page(
    summary: Summary,
    metrics: Sequence[MetricsMeasured],
    spec: JobSpec,
    samples: Sequence[Sample] = (),
    losses: RowLosses | None = None,
) -> str:
    """Renders the page as one HTML document; arguments as in `write_report`."""
    words = METHODS[spec.train.method].words
    warnings = "".join(f"<li>{escape(text)}</li>" for text in summary.warnings)
    settings = "".join(
        render_table(name, getattr(spec, name).model_dump(mode="json"))
        for name in ("lora", "data", "train")
    )
    parts = (
        _render_headline(summary, spec, words),
        f"<section class=warnings><h2>Warnings</h2><ul>{warnings}</ul></section>"
        if warnings
        else "",
        _render_charts(metrics, words),
        render_privacy_section(summary.privacy, losses or {}),
        _render_samples(samples),
        "<div class=columns>",
        render_table("Rows", summary.rows),
        *(render_table(f"Rows of {name}", counts) for name, counts in summary.mix.items()),
        render_table("Task metrics: rows", summary.task.counts()) if summary.task else "",
        render_table("Tokens of a row", summary.tokens),
        render_table("Adapter", summary.adapter),
        render_table("Seconds", summary.seconds),
        render_table("Environment", summary.environment),
        "</div>",
        f"<details><summary>Settings</summary><div class=columns>{settings}</div></details>",
    )
    body = without_controls("".join(parts))
    return f"<!doctype html><html lang=en><head>{_HEAD}</head><body><main>{body}</main></body></html>\n"


def _render_headline(summary: Summary, spec: JobSpec, words: MethodWords) -> str:
    figures = [
        *_held_out_figures(summary, words),
        *(
            (f"{name} on held-out rows", f"{before:.1%} → {after:.1%}")
            for name, before, after in (summary.task.changes() if summary.task else ())
        ),
        ("training loss", f"{summary.train_loss:.4f}"),
        ("steps", f"{summary.steps:,}"),
        ("tokens trained on", f"{summary.trained_tokens:,}"),
    ]
    tiles = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in figures
    )
    base = f"<p class=base>{escape(words.title)} on {escape(spec.model.public_name)}</p>"
    return f"<h1>Fine-tuning report</h1>{base}<section class=tiles>{tiles}</section>"


def _held_out_figures(summary: Summary, words: MethodWords) -> Iterator[tuple[str, str]]:
    """Yields label and value of what the held-out rows show; nothing without an evaluation."""
    before, after = summary.eval_loss_before, summary.eval_loss_after
    if before is None or after is None:
        return
    yield "loss on held-out rows", f"{before:.4f} → {after:.4f}"
    for tile in words.tiles:
        # Measured in preference training only.
        if tile.metric in summary.pairs:
            yield tile.label, format(summary.pairs[tile.metric], tile.format)
    # exp(loss) is a perplexity only where the loss is a mean negative log-likelihood of tokens.
    if words.has_perplexity:
        yield "perplexity on held-out rows", f"{perplexity(before):.2f} → {perplexity(after):.2f}"


def _render_charts(metrics: Sequence[MetricsMeasured], words: MethodWords) -> str:
    def curve(label: str, metric: str, style: str = "main", *, dots: bool = False) -> Curve:
        return Curve(label, metric_points(metrics, metric), style, dots=dots)

    # A method's chart has at most two lines. Evaluations are few, so their points are marked.
    method_charts = [
        (
            chart.title,
            chart.unit,
            [
                curve(label, metric, style, dots=metric.startswith("eval_"))
                for (label, metric), style in zip(chart.lines, ("main", "second"), strict=False)
            ],
        )
        for chart in words.charts
        if metric_points(metrics, chart.lines[0][1])
    ]
    throughput = [
        curve("all tokens", "input_tokens_per_second"),
        curve("trained on", "tokens_per_second", "second"),
    ]
    charts = (
        ("Loss", words.loss_unit, _loss_curves(metrics)),
        *method_charts,
        (
            "Learning rate",
            "",
            [
                curve("learning rate", "learning_rate"),
                Curve("matrices B (LoRA+)", metric_points(metrics, "learning_rate_b"), "second"),
            ],
        ),
        ("Gradient norm", "before clipping", [curve("norm", "grad_norm")]),
        ("Throughput", "tokens per second, without padding", throughput),
    )
    figures = []
    for title, unit, curves in charts:
        chart = render_line_chart([curve for curve in curves if curve.points], x_label="step")
        note = f" <small>{escape(unit)}</small>" if unit else ""
        if chart:
            figures.append(
                f"<figure><figcaption>{escape(title)}{note}</figcaption>{chart}</figure>"
            )
    return f"<section class=charts>{''.join(figures)}</section>"


def _loss_curves(metrics: Sequence[MetricsMeasured]) -> list[Curve]:
    # A step's loss depends on which rows it draws. The mean over a twentieth of the run shows the trend.
    loss = metric_points(metrics, "loss")
    window = max(1, len(loss) // _SMOOTHING_WINDOWS)
    return [
        Curve("each step", loss, "faint"),
        Curve(f"mean of {window}", trailing_mean(loss, window) if window > 1 else (), "main"),
        Curve("held-out rows", metric_points(metrics, "eval_loss"), "second", dots=True),
    ]


def _render_samples(samples: Sequence[Sample]) -> str:
    """Renders each prompt with the answers of the base model, of the trained model and of the row itself."""
    if not samples:
        return ""
    cards = []
    for sample in samples:
        answers = (
            ("before", sample.before),
            ("after", sample.after),
            ("the row", sample.reference),
        )
        columns = "".join(
            f"<div><h3>{title}</h3><p>{escape(text)}</p></div>" for title, text in answers
        )
        prompt = f"<p class=prompt>{escape(sample.prompt)}</p>"
        cards.append(f"<article>{prompt}<div class=answers>{columns}</div></article>")
    heading = "<h2>Held-out prompts, answered before and after</h2>"
    return f"<section class=samples>{heading}{''.join(cards)}</section>"


def metric_points(metrics: Sequence[MetricsMeasured], name: str) -> list[Point]:
    """Returns (step, value) of one metric, for each step at which it was measured."""
    return [(float(item.step), item.values[name]) for item in metrics if name in item.values]


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

# A second line of defence after escaping. `trainer.receipt.static_page` demands this head.
_HEAD: Final = (
    '<meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">'
    f'<meta http-equiv=Content-Security-Policy content="{page_security_policy(_STYLE)}">'
    f"<title>Fine-tuning report</title><style>{_STYLE}</style>"
)
