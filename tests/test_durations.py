"""Durations and distances in words, of one unit that a person thinks in."""

from __future__ import annotations

import pytest

from trainer.durations import describe_duration, utc, utc_and_distance


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (59 * 60, "59 min"),
        (90 * 60, "90 min"),
        (2 * 3600 - 31, "119 min"),
        (7 * 3600, "7 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 days"),
        (400 * 86400, "400 days"),
        (5 * 365 * 86400, "5 years"),
        (2**53, "285616415 years"),
    ],
)
def test_a_duration_has_one_unit(seconds: int, words: str) -> None:
    assert describe_duration(seconds) == words


@pytest.mark.parametrize(
    ("moment", "distance"),
    [(1000, "now"), (1000 - 7200, "2 h ago"), (1000 + 86400 * 3, "in 3 days")],
)
def test_a_time_has_its_distance(moment: int, distance: str) -> None:
    moment += 10**9
    assert utc_and_distance(moment, now=10**9 + 1000) == f"{utc(moment)} ({distance})"


def test_the_end_of_the_calendar() -> None:
    assert utc(253402300799).startswith("9999-12-31")
