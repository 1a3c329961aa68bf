"""The training methods that a job spec can name, and their rules, in a module that does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

MethodName = Literal["sft", "dpo", "orpo", "kto"]
"""Values of `train.method`."""

LearnedRows = Literal["answers", "pairs", "labels"]
"""What a method learns from: answers, pairs of a better and a worse answer, or answers with a label."""


@dataclass(frozen=True)
class MethodRules:
    """What a method trains on, and which keys of section `train` belong to it.

    Attributes:
        learns_from: `pairs` for preference rows, `labels` for unpaired preference rows, `answers` for all others.
        keys: keys that mean something to this method and not to every other.
    """

    learns_from: LearnedRows = "answers"
    keys: frozenset[str] = frozenset()

    @property
    def examples_per_row(self) -> int:
        """Examples that each row gives: both answers of a pair, or one."""
        return 2 if self.learns_from == "pairs" else 1

    @property
    def judges_answers(self) -> bool:
        """Whether the method learns which answers are better, so that it trains on complete answers only."""
        return self.learns_from != "answers"


METHOD_RULES: Final[Mapping[MethodName, MethodRules]] = {
    "sft": MethodRules(),
    "dpo": MethodRules(
        "pairs", frozenset({"beta", "label_smoothing", "loss_type", "loss_weights"})
    ),
    "orpo": MethodRules("pairs", frozenset({"beta"})),
    "kto": MethodRules("labels", frozenset({"beta", "desirable_weight", "undesirable_weight"})),
}
