"""Fixtures of the message tests: job specs."""

from tests.training.conftest import make_spec

__all__ = ["make_spec"]
