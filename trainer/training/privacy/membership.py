"""Membership inference by loss: can one tell rows that were trained on from rows that were not?

The simplest attack is a threshold on a row's loss (Yeom et al., "Privacy risk in machine learning", CSF 2018,
arXiv:1709.01604). Rows differ in how hard they are, so the loss before training is a better yardstick than none
(calibration: Watson et al., arXiv:2111.08440). Beside the area under the curve, which averages over all
thresholds, stands the share of rows that are found at few false alarms (Carlini et al., "Membership inference
attacks from first principles", arXiv:2112.03570).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from trainer.training.privacy.privacy_findings import Membership, Separation

FALSE_ALARMS: Final = 0.01
_Z95: Final = 1.959963984540054
"""97.5 % quantile of the normal distribution."""

Floats = Sequence[float]


def membership(members: tuple[Floats, Floats], outsiders: tuple[Floats, Floats]) -> Membership:
    """Both tests.

    Args:
        members: training rows' losses per token, before and after training.
        outsiders: the same of held-out rows.
    """
    inside, outside = scores(*members), scores(*outsiders)
    return Membership(
        members=len(members[0]),
        outsiders=len(outsiders[0]),
        loss=separation(inside[0], outside[0]),
        calibrated=separation(inside[1], outside[1]),
    )


def scores(before: Floats, after: Floats) -> tuple[list[float], list[float]]:
    """How much each row looks trained on: by its loss alone, and by how far that fell."""
    return [-loss for loss in after], [old - new for old, new in zip(before, after, strict=True)]


def separation(inside: Floats, outside: Floats) -> Separation:
    """How well scores tell the two apart, with 95 % intervals."""
    area, error = auc(inside, outside)
    found = round(tpr(inside, outside, FALSE_ALARMS) * len(inside))
    return Separation(
        auc=area,
        auc_interval=(max(0.0, area - _Z95 * error), min(1.0, area + _Z95 * error)),
        tpr=found / len(inside),
        tpr_interval=wilson(found, len(inside)),
    )


def auc(inside: Floats, outside: Floats) -> tuple[float, float]:
    """P(inside > outside) + P(equal)/2, and its standard error by DeLong, DeLong and Clarke-Pearson (1988).

    Where the samples do not overlap, that error is 0; then 1/(4·smaller sample) stands for it, as one row that
    falls on the other side would change the area by about twice that.
    """
    first, second = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    by_inside = _wins(first, second)
    by_outside = 1 - _wins(second, first)
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (by_inside, by_outside) if len(part) > 1)
    return float(by_inside.mean()), max(math.sqrt(variance), 1 / (4 * min(len(first), len(second))))


def _wins(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """For each of these the share of those that are below it, equal ones counting half."""
    ordered = np.sort(those)
    below, upto = np.searchsorted(ordered, these, "left"), np.searchsorted(ordered, these, "right")
    return (below + upto) / (2 * len(those))


def tpr(inside: Floats, outside: Floats, false_alarms: float) -> float:
    """Share of `inside` above the lowest threshold that at most this share of `outside` passes."""
    allowed = int(false_alarms * len(outside))
    threshold = sorted(outside, reverse=True)[allowed]
    return sum(score > threshold for score in inside) / len(inside)


def roc(inside: Floats, outside: Floats, points: int = 64) -> list[tuple[float, float]]:
    """(false alarms, found) for falling thresholds: each where something changes, thinned out to `points`."""
    thresholds = sorted({*inside, *outside}, reverse=True)
    kept = thresholds[:: max(1, len(thresholds) // points)]
    curve = [
        (
            sum(score >= limit for score in outside) / len(outside),
            sum(score >= limit for score in inside) / len(inside),
        )
        for limit in kept
    ]
    return [(0.0, 0.0), *curve, (1.0, 1.0)]


def wilson(found: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927)."""
    share, square = found / of, _Z95**2
    centre = (share + square / (2 * of)) / (1 + square / of)
    half = _Z95 / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)
