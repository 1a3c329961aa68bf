"""Fixtures of the simulator's tests: a guest agent that is one."""

from tests.tee.conftest import compose, endpoint, judge, now, old_endpoint, seed, socket_path, vm

__all__ = ["compose", "endpoint", "judge", "now", "old_endpoint", "seed", "socket_path", "vm"]
