"""Durations and moments in words for people: one unit each, the one that a person thinks in."""

from __future__ import annotations

import datetime as dt
from typing import Final

_UNITS: Final = (
    (3 * 365 * 86400, 365 * 86400, "years"),
    (2 * 86400, 86400, "days"),
    (2 * 3600, 3600, "h"),
    (90, 60, "min"),
    (0, 1, "s"),
)
"""From how many seconds on a unit is used, its length in seconds, its name: `90 min` says more than `1 h`."""


def describe_duration(seconds: int) -> str:
    """Returns a duration of at least 0 seconds, rounded to one unit, such as `42 s`, `90 min` or `3 days`."""
    length, name = next((length, name) for least, length, name in _UNITS if seconds >= least)
    return f"{(seconds + length // 2) // length} {name}"


def utc(seconds: int) -> str:
    """Returns Unix seconds as a date and time in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def utc_and_distance(seconds: int, *, now: int) -> str:
    """Returns Unix seconds as a date and time in UTC with the distance from `now`, such as `… (2 h ago)`."""
    if seconds == now:
        return f"{utc(seconds)} (now)"
    distance = describe_duration(abs(seconds - now))
    return f"{utc(seconds)} ({f'in {distance}' if seconds > now else f'{distance} ago'})"
