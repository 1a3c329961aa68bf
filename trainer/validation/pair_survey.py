"""Token lengths of preference rows: prompt, chosen answer and rejected answer."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from trainer.data.examples.example import PreferenceExample


@dataclass
class PairLengths:
    """Number of tokens of the prompt and of both answers of each pair, after cutting to `data.max_length`."""

    prompt: array[int] = field(default_factory=lambda: array("i"))
    chosen: array[int] = field(default_factory=lambda: array("i"))
    rejected: array[int] = field(default_factory=lambda: array("i"))

    def add(self, pair: PreferenceExample) -> None:
        """Adds the lengths of one pair."""
        # Only the answer is trained on, so the first trained token is the first one after the prompt.
        prompt = pair.chosen.trained.index(1)
        self.prompt.append(prompt)
        self.chosen.append(pair.chosen.length - prompt)
        self.rejected.append(pair.rejected.length - pair.rejected.trained.index(1))

    @property
    def longer(self) -> int:
        """Number of pairs whose chosen answer is longer; if nearly all are, the model may learn length alone."""
        return sum(chosen > rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True))
