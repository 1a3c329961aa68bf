"""The tests of the engine unsloth do not run beside others, and say why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unsloth import conftest

HERE = Path(__file__).parent


@dataclass
class Item:
    """What is taken of a collected test."""

    path: Path
    marks: list[pytest.MarkDecorator] = field(default_factory=list)

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark)

    @property
    def reasons(self) -> list[str]:
        return [mark.kwargs["reason"] for mark in self.marks if mark.name == "skip"]


def collect(*names: str) -> list[Item]:
    items = [Item(HERE / name) for name in names]
    conftest.pytest_collection_modifyitems(cast("list[Any]", items))
    return items


@pytest.mark.parametrize("found", [None, object()])
def test_the_tier_skips_with_its_reason(found: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "find_spec", lambda _name: found)
    (alone,) = collect("unsloth/test_engine.py")
    assert alone.reasons == (
        [] if found else ["unsloth is not installed here: scripts/test --unsloth"]
    )
    beside, other = collect("unsloth/test_engine.py", "test_logs.py")
    assert len(beside.reasons) == 1
    assert beside.reasons[0].endswith("scripts/test --unsloth")
    assert other.marks == []
