"""The renderer of a clean pair of compose files, in which a test changes exactly one thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trainer.simulator.compose_files import render_app_compose


@pytest.fixture(scope="session")
def render() -> Callable[..., bytes]:
    return render_app_compose
