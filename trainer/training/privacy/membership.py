"""Membership inference by loss: measures how well an attacker can tell training rows from held-out rows.

The attack is a threshold on a row's loss (Yeom et al., "Privacy risk in machine learning", CSF 2018,
arXiv:1709.01604). Some rows are easier than others for any model. The calibrated attack therefore subtracts the
loss before training (Watson et al., arXiv:2111.08440). The AUC averages over all thresholds and can hide an attack
that identifies a few rows with certainty. So the true positive rate at a low false positive rate is measured too
(Carlini et al., "Membership inference attacks from first principles", arXiv:2112.03570).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from trainer.training.privacy.privacy_findings import Membership, Separation

FALSE_ALARMS: Final = 0.01
"""False positive rate at which the true positive rate is reported."""

_Z95: Final = 1.959963984540054
"""97.5 % quantile of the normal distribution."""

Floats = Sequence[float]


def membership(members: tuple[Floats, Floats], outsiders: tuple[Floats, Floats]) -> Membership:
    """Runs the plain and the calibrated attack.

    Args:
        members: losses of training rows before and after training, in nats per token.
        outsiders: the same for held-out rows.
    """
    inside, outside = scores(*members), scores(*outsiders)
    return Membership(
        members=len(members[0]),
        outsiders=len(outsiders[0]),
        loss=separation(inside[0], outside[0]),
        calibrated=separation(inside[1], outside[1]),
    )


def scores(before: Floats, after: Floats) -> tuple[list[float], list[float]]:
    """Returns two scores for each row: the negative loss after training, and the fall of the loss in training.

    A higher score means that the attacker takes the row for a training row.
    """
    return [-loss for loss in after], [old - new for old, new in zip(before, after, strict=True)]


def separation(inside: Floats, outside: Floats) -> Separation:
    """Returns the AUC and the true positive rate of scores, each with its 95 % confidence interval.

    Args:
        inside: scores of training rows.
        outside: scores of held-out rows.
    """
    # 95 % of a normal distribution is within 1.96 standard errors of its mean.
    area, error = auc(inside, outside)
    # The Wilson interval needs the count of found rows; the rate is that count over the number of rows.
    found = round(tpr(inside, outside, FALSE_ALARMS) * len(inside))
    return Separation(
        auc=area,
        auc_interval=(max(0.0, area - _Z95 * error), min(1.0, area + _Z95 * error)),
        tpr=found / len(inside),
        tpr_interval=wilson(found, len(inside)),
    )


def auc(inside: Floats, outside: Floats) -> tuple[float, float]:
    """Returns the area under the ROC curve and its standard error.

    The area is P(inside > outside) + P(inside = outside)/2 over all pairs of one training and one held-out row.
    The standard error is that of DeLong, DeLong and Clarke-Pearson (1988), but at least 1/(4 · smaller sample):
    samples that do not overlap have a variance of 0, although another draw of rows could well overlap.
    """
    first, second = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    # The share of the other sample that each row is ordered correctly against; the mean of both is the AUC.
    by_inside = _shares_below(first, second)
    by_outside = 1 - _shares_below(second, first)
    # DeLong: the sum over both samples of the variance of these shares, divided by the size of the sample.
    variance = sum(
        float(part.var(ddof=1)) / len(part) for part in (by_inside, by_outside) if len(part) > 1
    )
    return float(by_inside.mean()), max(math.sqrt(variance), 1 / (4 * min(len(first), len(second))))


def _shares_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns for each score the share of `others` below it, with equal ones counted half: float64 [scores]."""
    ordered = np.sort(others)
    below, not_above = (
        np.searchsorted(ordered, scores, "left"),
        np.searchsorted(ordered, scores, "right"),
    )
    return (below + not_above) / (2 * len(others))


def tpr(inside: Floats, outside: Floats, false_alarms: float) -> float:
    """Returns the true positive rate at a false positive rate of at most `false_alarms`.

    The threshold is the lowest score that at most that share of the held-out rows exceeds.
    """
    # Rounded down. With fewer than 1/false_alarms held-out rows no false positive is allowed at all.
    allowed = int(false_alarms * len(outside))
    # Only scores above the threshold count: ties with it would add false positives beyond those allowed.
    threshold = sorted(outside, reverse=True)[allowed]
    return sum(score > threshold for score in inside) / len(inside)


def roc(inside: Floats, outside: Floats, points: int = 64) -> list[tuple[float, float]]:
    """Returns the ROC curve as (false positive rate, true positive rate), from (0, 0) to (1, 1).

    The curve only changes at a score that occurs, so these are the thresholds, in falling order. Above `points` of
    them, the curve has every n-th one; it may have up to twice as many points.
    """
    thresholds = sorted({*inside, *outside}, reverse=True)
    plotted = thresholds[:: max(1, len(thresholds) // points)]
    curve = [
        (
            sum(score >= limit for score in outside) / len(outside),
            sum(score >= limit for score in inside) / len(inside),
        )
        for limit in plotted
    ]
    return [(0.0, 0.0), *curve, (1.0, 1.0)]


def wilson(found: int, total: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a proportion (E. B. Wilson, 1927).

    Unlike proportion ± z · standard error, it has a positive width where no row or every row is found.
    """
    # The interval contains each p with |found / total - p| ≤ z · √(p (1 - p) / total). Squared, this is quadratic
    # in p; the roots are centre ± half.
    share, square = found / total, _Z95**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = (
        _Z95
        / (1 + square / total)
        * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    )
    return max(0.0, centre - half), min(1.0, centre + half)
