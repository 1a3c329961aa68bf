"""Fixtures of the exchange's tests: a real front process to talk to."""

from tests.front.conftest import client_of, front, relay, relay_to, start_front

__all__ = ["client_of", "front", "relay", "relay_to", "start_front"]
