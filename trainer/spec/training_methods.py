"""The training methods that a job spec can name, and their rules, in a module that does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

MethodName = Literal["sft", "dpo", "orpo"]
"""Values of `train.method`."""


@dataclass(frozen=True)
class MethodRules:
    """What a method trains on, and which keys of section `train` belong to it.

    Attributes:
        examples_per_row: examples that each row gives: 2 for a method that learns from preference rows, 1 for a
            method that learns from all other kinds.
        keys: keys that mean something to this method and not to every other.
    """

    examples_per_row: int = 1
    keys: frozenset[str] = frozenset()

    @property
    def learns_from_pairs(self) -> bool:
        """Whether the method trains on preference rows, and on no others."""
        return self.examples_per_row == 2


METHOD_RULES: Final[Mapping[MethodName, MethodRules]] = {
    "sft": MethodRules(),
    "dpo": MethodRules(
        examples_per_row=2, keys=frozenset({"beta", "label_smoothing", "loss_type", "loss_weights"})
    ),
    "orpo": MethodRules(examples_per_row=2, keys=frozenset({"beta"})),
}
