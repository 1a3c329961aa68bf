"""The sections on privacy of the report and of the model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from trainer.training.privacy.membership import roc, scores
from trainer.training.privacy.privacy_findings import (
    DifferentialPrivacy,
    Exposure,
    Membership,
    Privacy,
    Separation,
)
from trainer.training.report.charts import Curve, Point, render_line_chart

_HISTOGRAM_BINS: Final = 24

RowLosses = Mapping[str, Sequence[float]]
"""Mean loss of each audited row, in nats per token: the content of `MemorisationAudit.losses`."""


def render_privacy_section(privacy: Privacy | None, losses: RowLosses) -> str:
    """Renders the section as HTML; empty if the job spec asks for no privacy.

    Args:
        privacy: the findings.
        losses: losses that the charts are drawn from; may be empty.
    """
    if privacy is None:
        return ""
    tables = (
        _render_differential(privacy.differential),
        _render_membership(privacy.membership),
        _render_exposure(privacy.exposure),
    )
    notice = _render_withheld(privacy.withheld)
    charts = _render_privacy_charts(losses) if losses else ""
    columns = f"<div class=columns>{''.join(tables)}</div>"
    return f"<section class=privacy><h2>Privacy of the weights</h2>{notice}{columns}{charts}</section>"


def _render_withheld(reason: str | None) -> str:
    return f"<p class=warnings><b>The adapter is withheld.</b> {escape(reason)}</p>" if reason else ""


def _render_differential(found: DifferentialPrivacy | None) -> str:
    if found is None:
        return _render_table("Differential privacy", {"ε": "no: trained without noise"})
    return _render_table("Differential privacy of each row", _budget_values(found))


def _budget_values(found: DifferentialPrivacy) -> dict[str, str]:
    return {
        "ε": f"{found.epsilon:.4g}",
        "δ": f"{found.delta:g}",
        "accountant": found.accountant,
        "noise multiplier": f"{found.noise_multiplier:.4g}",
        "bound on a row's gradient": f"{found.max_grad_norm:g}",
        "probability of a row in a step": f"{found.sample_rate:.4g}",
        "steps": f"{found.steps:,}",
    }


def _render_membership(found: Membership | None) -> str:
    if found is None:
        return ""
    rows = {"training rows, held-out rows": f"{found.members:,}, {found.outsiders:,}"}
    for name, test in (("by loss", found.loss), ("by change of loss", found.calibrated)):
        rows |= _separation_values(name, test)
    return _render_table("Membership test", rows)


def _separation_values(name: str, test: Separation) -> dict[str, str]:
    return {
        f"AUC {name}": f"{test.auc:.3f} ({test.auc_interval[0]:.3f} to {test.auc_interval[1]:.3f})",
        f"found at 1 % false alarms {name}": (
            f"{test.tpr:.1%} ({test.tpr_interval[0]:.1%} to {test.tpr_interval[1]:.1%})"
        ),
    }


def _render_exposure(found: Exposure | None) -> str:
    if found is None:
        return ""
    return _render_table(
        "Canaries",
        {
            "texts times repetitions": f"{found.canaries} times {found.repetitions}",
            "exposure, largest (bits)": f"{found.largest:.2f}",
            "exposure, mean (bits; 1.44 by chance)": f"{found.mean:.2f}",
            "candidates": f"{found.candidates:,}",
        },
    )


def _render_privacy_charts(losses: RowLosses) -> str:
    inside = scores(losses["members_before"], losses["members_after"])
    outside = scores(losses["outsiders_before"], losses["outsiders_after"])
    curves = (
        Curve("by change of loss", roc(inside[1], outside[1]), "main"),
        Curve("by loss", roc(inside[0], outside[0]), "second"),
        Curve("by chance", ((0.0, 0.0), (1.0, 1.0)), "faint"),
    )
    loss_decreases = (
        Curve("training rows", histogram(inside[1], (*inside[1], *outside[1])), "main"),
        Curve("held-out rows", histogram(outside[1], (*inside[1], *outside[1])), "second"),
    )
    return (
        "<div class=charts>"
        "<figure><figcaption>Training rows found</figcaption>"
        f"{render_line_chart(curves, x_label='false alarms')}</figure>"
        "<figure><figcaption>Decrease of a row's loss <small>share of rows by nats per token</small></figcaption>"
        f"{render_line_chart(loss_decreases, x_label='nats per token')}</figure></div>"
    )


def histogram(values: Sequence[float], span: Sequence[float]) -> list[Point]:
    """Computes a histogram, as the corners of a step curve.

    Args:
        values: what is counted.
        span: its smallest and largest values are the ends of the bins, which are equally wide.

    Returns:
        (edge, share of `values`) at both edges of each bin.
    """
    low, high = min(span), max(span)
    width = (high - low) / _HISTOGRAM_BINS or 1.0
    counts = [0] * _HISTOGRAM_BINS
    for value in values:
        counts[min(int((value - low) / width), _HISTOGRAM_BINS - 1)] += 1
    return [
        (low + (number + side) * width, count / len(values))
        for number, count in enumerate(counts)
        for side in (0, 1)
    ]


def _render_table(title: str, values: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}<td>{escape(value)}" for name, value in values.items())
    return f"<section><h2>{escape(title)}</h2><table>{rows}</table></section>"


def privacy_card_lines(privacy: Privacy) -> Iterator[str]:
    """Yields the model card's section on privacy, as lines of Markdown."""
    yield from ("", "## Privacy", "")
    if privacy.differential is not None:
        found = privacy.differential
        yield (
            f"Trained with differential privacy (DP-SGD): the weights are (ε, δ)-differentially private with ε = "
            f"{found.epsilon:.4g} and δ = {found.delta:g} for each single training row, present or absent."
        )
        yield from ("", "| | |", "|---|---|")
        yield from (f"| {name} | {value} |" for name, value in _budget_values(found).items())
    if privacy.membership is not None and privacy.differential is None:
        yield f"- membership test by loss: AUC {privacy.membership.worst:.3f} (0.5 is chance)"
    if privacy.exposure is not None and privacy.differential is None:
        yield f"- {privacy.exposure.canaries} canaries: exposure of at most {privacy.exposure.largest:.2f} bits"
