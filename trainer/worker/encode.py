"""The worker's view of `trainer.examples.encode`, which the provider's tool shares."""

from trainer.examples.encode import encode
from trainer.examples.example import Example, PreferenceExample

__all__ = ["Example", "PreferenceExample", "encode"]
