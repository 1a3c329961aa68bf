"""Line charts as inline SVG: no script, no font, nothing that a browser would load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH, HEIGHT = 640, 260
"""Size of a chart in pixels."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 34
"""Margins in pixels, for the labels of the axes."""

_TICKS: Final = 5
"""How many intervals an axis has, about."""

_SMALLEST_SPAN: Final = 1e-300
"""A smaller span is drawn as a constant: a fifth of it would underflow, and has no logarithm."""

Point = tuple[float, float]
"""(x, y)."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        points: (x, y), sorted by x.
        style: CSS class that sets its colour.
        dots: whether each point is marked, for curves with few points.
    """

    label: str
    points: Sequence[Point]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class _Axes:
    """The smallest and the largest value of each axis."""

    x: tuple[float, float]
    y: tuple[float, float]

    def to_pixels(self, point: Point) -> Point:
        """Returns where a point is drawn, in pixels from the top left corner."""
        # SVG counts y downwards from the top.
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )


def render_line_chart(curves: Sequence[Curve], *, x_label: str) -> str:
    """Renders curves as an SVG element and a legend; an empty text if no curve has a point."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    ticks = nice_ticks(min(ys), max(ys))
    # A single x gets an axis of length 1: `to_pixels` divides by the length.
    axes = _Axes((min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1), (ticks[0], ticks[-1]))
    # What a screen reader says instead of the picture; in an attribute, quotes need escaping too.
    label = f"{', '.join(curve.label for curve in curves)} by {x_label}"
    legend = "".join(
        f'<span class="key {curve.style}">{escape(curve.label)}</span>'
        for curve in curves
        if curve.points
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{_render_grid(axes, x_label)}{''.join(_render_curve(curve, axes) for curve in curves)}</svg>"
        f"<p class=legend>{legend}</p>"
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Returns evenly spaced round numbers, the first at most `low`, the last at least `high`; at least two."""
    if not high - low > _SMALLEST_SPAN:
        # A constant c is drawn in the middle of c - |c| / 2 and c + |c| / 2.
        half = max(abs(low), _SMALLEST_SPAN * 1e6) / 2 if low else 0.5
        low, high = low - half, high + half
    # The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that gives about `_TICKS` intervals. 0.999 lets a
    # step pass that is too small by rounding only.
    wanted = (high - low) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(wanted))
    step = next(
        factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= wanted * 0.999
    )
    # Rounding may put a bound a little beside the multiple of `step` that it is meant to be.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _render_grid(axes: _Axes, x_label: str) -> str:
    parts = []
    for value in nice_ticks(*axes.y):
        x, y = axes.to_pixels((axes.x[0], value))
        parts.append(
            f'<line class=grid x1="{x:.1f}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{_format_number(value)}</text>'
        )
    # The y axis begins and ends at a tick. The x axis does not, so ticks beyond its ends are left out.
    for value in (tick for tick in nice_ticks(*axes.x) if axes.x[0] <= tick <= axes.x[1]):
        x, _ = axes.to_pixels((value, axes.y[0]))
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_format_number(value)}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _render_curve(curve: Curve, axes: _Axes) -> str:
    placed = [axes.to_pixels(point) for point in curve.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = (
        "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed)
        if curve.dots
        else ""
    )
    return f'<g class="{curve.style}"><polyline points="{line}"/>{dots}</g>'


def _format_number(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3g}"
    return f"{value:.6g}"


def trailing_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Replaces each y by the mean of up to `window` points that end there."""
    means = []
    for index in range(len(points)):
        part = [point[1] for point in points[max(0, index - window + 1) : index + 1]]
        means.append((points[index][0], sum(part) / len(part)))
    return means
