"""The sections on privacy of the report and of the model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from trainer.training.privacy.membership import roc, scores
from trainer.training.privacy.privacy_findings import DifferentialPrivacy, Privacy
from trainer.training.report.charts import Curve, Point, render_line_chart
from trainer.training.report.tables import render_table

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
    notice = ""
    if privacy.withheld:
        notice = f"<p class=warnings><b>The adapter is withheld.</b> {escape(privacy.withheld)}</p>"
    charts = _render_privacy_charts(losses) if losses else ""
    columns = f"<div class=columns>{''.join(_render_findings(privacy))}</div>"
    return (
        f"<section class=privacy><h2>Privacy of the weights</h2>{notice}{columns}{charts}</section>"
    )


def _render_findings(privacy: Privacy) -> Iterator[str]:
    """Yields a table for each finding, and one that says so where there was no differential privacy."""
    if privacy.differential is None:
        yield render_table("Differential privacy", {"ε": "no: trained without noise"})
    else:
        yield render_table("Differential privacy of each row", _budget_values(privacy.differential))
    if membership := privacy.membership:
        rows = {"training rows, held-out rows": f"{membership.members:,}, {membership.outsiders:,}"}
        for name, test in (
            ("by loss", membership.loss),
            ("by change of loss", membership.calibrated),
        ):
            auc_low, auc_high = test.auc_interval
            rows[f"AUC {name}"] = f"{test.auc:.3f} ({auc_low:.3f} to {auc_high:.3f})"
            tpr_low, tpr_high = test.tpr_interval
            rows[f"found at 1 % false alarms {name}"] = (
                f"{test.tpr:.1%} ({tpr_low:.1%} to {tpr_high:.1%})"
            )
        yield render_table("Membership test", rows)
    if exposure := privacy.exposure:
        rows = {
            "texts times repetitions": f"{exposure.canaries} times {exposure.repetitions}",
            "exposure, largest (bits)": f"{exposure.largest:.2f}",
            # By chance the exposure exceeds b bits with probability 2^-b. Its mean is the integral of that over
            # b from 0 to infinity: 1 / ln 2 = 1.44.
            "exposure, mean (bits; 1.44 by chance)": f"{exposure.mean:.2f}",
            "candidates": f"{exposure.candidates:,}",
        }
        yield render_table("Canaries", rows)


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


def _render_privacy_charts(losses: RowLosses) -> str:
    inside = scores(losses["members_before"], losses["members_after"])
    outside = scores(losses["outsiders_before"], losses["outsiders_after"])
    # A point for each threshold: the share of held-out and of training rows whose score is at least that high.
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
    width = (high - low) / _HISTOGRAM_BINS or 1.0  # all values equal: any width, but not 0
    counts = [0] * _HISTOGRAM_BINS
    for value in values:
        # The largest value is the upper edge of the last bin, and counted in it.
        counts[min(int((value - low) / width), _HISTOGRAM_BINS - 1)] += 1
    return [
        (low + (number + side) * width, count / len(values))
        for number, count in enumerate(counts)
        for side in (0, 1)
    ]


def privacy_card_lines(privacy: Privacy) -> Iterator[str]:
    """Yields the model card's section on privacy, as lines of Markdown."""
    yield from ("", "## Privacy", "")
    if privacy.differential is not None:
        found = privacy.differential
        # No more than this: sampling rate, noise and steps would lead to the exact number of rows.
        yield (
            "Trained with differential privacy (DP-SGD): the weights are (ε, δ)-differentially private with ε ≤ "
            f"{found.rounded_epsilon:g} and δ = {found.delta:g} for each single training row."
        )
        yield from ("", "`privacy.json` beside this folder is the job's signed statement of that.")
    # The audit computes its numbers from the rows without noise: (ε, δ) would not cover a card that has them.
    if privacy.membership is not None and privacy.differential is None:
        yield f"- membership test by loss: AUC {privacy.membership.worst:.3f} (0.5 is chance)"
    if privacy.exposure is not None and privacy.differential is None:
        yield f"- {privacy.exposure.canaries} canaries: exposure of at most {privacy.exposure.largest:.2f} bits"
