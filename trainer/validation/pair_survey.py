"""Lengths of preference rows, by part: what a provider looks at before `train.method` `dpo`."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from trainer.data.examples.example import PreferenceExample


@dataclass
class PairLengths:
    """Tokens of each pair's prompt and of its two answers, as the job will train on them."""

    prompt: array[int] = field(default_factory=lambda: array("i"))
    chosen: array[int] = field(default_factory=lambda: array("i"))
    rejected: array[int] = field(default_factory=lambda: array("i"))

    def add(self, pair: PreferenceExample) -> None:
        """Note one more pair."""
        prompt = pair.chosen.trained.index(1)
        self.prompt.append(prompt)
        self.chosen.append(pair.chosen.length - prompt)
        self.rejected.append(pair.rejected.length - pair.rejected.trained.index(1))

    @property
    def longer(self) -> int:
        """Pairs whose chosen answer is the longer one: a policy may learn that alone."""
        return sum(chosen > rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True))
