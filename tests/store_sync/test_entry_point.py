"""The loop of the sync process: it goes on until the supervisor ends it and nothing is left to send."""

from __future__ import annotations

from typing import Any, cast

import pytest

from trainer.exchange.object_store import store_unavailable
from trainer.store_sync import __main__ as entry_point


class FailingMirror:
    """A mirror whose store does not answer some times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.steps = 0

    def step(self) -> bool:
        self.steps += 1
        if self.steps <= self.failures:
            raise store_unavailable("ConnectionRefused")
        return False


def test_a_store_that_is_away_at_the_end_is_asked_after_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The supervisor has closed the channel, which is readable for ever then."""
    pauses: list[float] = []
    monkeypatch.setattr(entry_point, "_is_shutdown", lambda _seconds: True)
    monkeypatch.setattr("time.sleep", pauses.append)
    mirror = FailingMirror(4)
    entry_point._carry(cast("Any", mirror))
    assert mirror.steps == 5
    assert pauses == [4.0, 8.0, 16.0]  # the first failure came before the end
