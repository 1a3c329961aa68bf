"""Fixtures of the provider's tests: a real front process to talk to, and a sealed result."""

from tests.front.conftest import client_of, front, relay, relay_to, start_front
from tests.provider.honest_result import sealing

__all__ = ["client_of", "front", "relay", "relay_to", "sealing", "start_front"]
