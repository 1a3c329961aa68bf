"""The report's section on privacy, and the model card's."""

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
from trainer.training.report.charts import Curve, Point, line_chart

_BINS: Final = 24

Losses = Mapping[str, Sequence[float]]
"""What `Audit.losses` holds."""


def privacy_section(privacy: Privacy | None, losses: Losses) -> str:
    """HTML; empty where nothing was asked for."""
    if privacy is None:
        return ""
    parts = [
        _withheld(privacy.withheld),
        _differential(privacy.differential),
        _membership(privacy.membership),
        _exposure(privacy.exposure),
    ]
    charts = _charts(losses) if losses else ""
    tables = f"<div class=columns>{''.join(parts[1:])}</div>"
    return f"<section class=privacy><h2>Privacy of the weights</h2>{parts[0]}{tables}{charts}</section>"


def _withheld(reason: str | None) -> str:
    return f"<p class=warnings><b>The adapter is withheld.</b> {escape(reason)}</p>" if reason else ""


def _differential(found: DifferentialPrivacy | None) -> str:
    if found is None:
        return _table("Differential privacy", {"ε": "no: trained without noise"})
    return _table("Differential privacy of each row", _budget(found))


def _budget(found: DifferentialPrivacy) -> dict[str, str]:
    return {
        "ε": f"{found.epsilon:.4g}",
        "δ": f"{found.delta:g}",
        "accountant": found.accountant,
        "noise multiplier": f"{found.noise_multiplier:.4g}",
        "bound on a row's gradient": f"{found.max_grad_norm:g}",
        "probability of a row in a step": f"{found.sample_rate:.4g}",
        "steps": f"{found.steps:,}",
    }


def _membership(found: Membership | None) -> str:
    if found is None:
        return ""
    rows = {"training rows, held-out rows": f"{found.members:,}, {found.outsiders:,}"}
    for name, test in (("by loss", found.loss), ("by change of loss", found.calibrated)):
        rows |= _tested(name, test)
    return _table("Membership test", rows)


def _tested(name: str, test: Separation) -> dict[str, str]:
    return {
        f"AUC {name}": f"{test.auc:.3f} ({test.auc_interval[0]:.3f} to {test.auc_interval[1]:.3f})",
        f"found at 1 % false alarms {name}": (
            f"{test.tpr:.1%} ({test.tpr_interval[0]:.1%} to {test.tpr_interval[1]:.1%})"
        ),
    }


def _exposure(found: Exposure | None) -> str:
    if found is None:
        return ""
    return _table(
        "Canaries",
        {
            "texts times repetitions": f"{found.canaries} times {found.repetitions}",
            "exposure, largest (bits)": f"{found.largest:.2f}",
            "exposure, mean (bits; 1.44 by chance)": f"{found.mean:.2f}",
            "candidates": f"{found.candidates:,}",
        },
    )


def _charts(losses: Losses) -> str:
    inside = scores(losses["members_before"], losses["members_after"])
    outside = scores(losses["outsiders_before"], losses["outsiders_after"])
    curves = (
        Curve("by change of loss", roc(inside[1], outside[1]), "main"),
        Curve("by loss", roc(inside[0], outside[0]), "second"),
        Curve("by chance", ((0.0, 0.0), (1.0, 1.0)), "faint"),
    )
    falls = (
        Curve("training rows", histogram(inside[1], (*inside[1], *outside[1])), "main"),
        Curve("held-out rows", histogram(outside[1], (*inside[1], *outside[1])), "second"),
    )
    return (
        "<div class=charts>"
        "<figure><figcaption>Training rows found</figcaption>"
        f"{line_chart(curves, x_label='false alarms')}</figure>"
        "<figure><figcaption>Fall of a row's loss <small>share of rows by nats per token</small></figcaption>"
        f"{line_chart(falls, x_label='nats per token')}</figure></div>"
    )


def histogram(values: Sequence[float], span: Sequence[float]) -> list[Point]:
    """Shares of `values` in equal bins from the least to the largest of `span`, as corners of steps."""
    low, high = min(span), max(span)
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for value in values:
        counts[min(int((value - low) / width), _BINS - 1)] += 1
    return [
        (low + (number + side) * width, count / len(values))
        for number, count in enumerate(counts)
        for side in (0, 1)
    ]


def _table(title: str, values: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}<td>{escape(value)}" for name, value in values.items())
    return f"<section><h2>{escape(title)}</h2><table>{rows}</table></section>"


def card_lines(privacy: Privacy) -> Iterator[str]:
    """The model card's section, as lines of Markdown."""
    yield from ("", "## Privacy", "")
    if privacy.differential is not None:
        found = privacy.differential
        yield (
            f"Trained with differential privacy (DP-SGD): the weights are (ε, δ)-differentially private with ε = "
            f"{found.epsilon:.4g} and δ = {found.delta:g} for each single training row, present or absent."
        )
        yield from ("", "| | |", "|---|---|")
        yield from (f"| {name} | {value} |" for name, value in _budget(found).items())
    if privacy.membership is not None and privacy.differential is None:
        yield f"- membership test by loss: AUC {privacy.membership.worst:.3f} (0.5 is chance)"
    if privacy.exposure is not None and privacy.differential is None:
        yield f"- {privacy.exposure.canaries} canaries: exposure of at most {privacy.exposure.largest:.2f} bits"
