"""Token lengths of preference rows: prompt, chosen answer and rejected answer."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from trainer.data.examples.example import PreferenceExample


class PairLength(NamedTuple):
    """Number of tokens of the prompt and of both answers of a pair, after cutting to `data.max_length`."""

    prompt: int
    chosen: int
    rejected: int

    @classmethod
    def of(cls, pair: PreferenceExample) -> PairLength:
        """Counts the tokens of a pair."""
        # Only the answer is trained on, so the first trained token is the first one after the prompt.
        prompt = pair.chosen.trained.index(1)
        return cls(
            prompt,
            pair.chosen.length - prompt,
            pair.rejected.length - pair.rejected.trained.index(1),
        )


@dataclass
class PairLengths:
    """The lengths of all pairs."""

    prompt: array[int] = field(default_factory=lambda: array("i"))
    chosen: array[int] = field(default_factory=lambda: array("i"))
    rejected: array[int] = field(default_factory=lambda: array("i"))

    def add(self, pair: PairLength) -> None:
        """Adds the lengths of one pair."""
        self.prompt.append(pair.prompt)
        self.chosen.append(pair.chosen)
        self.rejected.append(pair.rejected)

    @property
    def longer(self) -> int:
        """Number of pairs whose chosen answer is longer; if nearly all are, the model may learn length alone."""
        return sum(
            chosen > rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True)
        )
