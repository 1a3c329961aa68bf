"""Fixtures of the worker's tests: those of the training library's."""

from tests.training.conftest import _one_thread, chat_file, make_spec, run_worker

__all__ = ["_one_thread", "chat_file", "make_spec", "run_worker"]
