"""What training works on: token ids, and which of them the loss is taken on."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from trainer.data.rows import Row


@dataclass(frozen=True)
class Example:
    """A row (or one turn of it), ready for training.

    Attributes:
        ids: token ids, up to the last one that is trained on: what follows it could not change anything.
        trained: one byte for each id: 1 where the loss is taken, 0 elsewhere; never 1 at position 0.
        stops: whether an end of turn (or of text) is among the trained ids.
        truncated: whether there were more than `max_length` tokens and they were cut.
    """

    ids: array[int]
    trained: bytes
    stops: bool
    truncated: bool = False

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Number of tokens that are trained on."""
        return sum(self.trained)


@dataclass(frozen=True)
class PreferenceExample:
    """Two continuations of one prompt, of which the first is preferred. The prompt's tokens are not trained on."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class EncodedRow:
    """What became of a row.

    Attributes:
        row: the row.
        examples: what it gives: one example as a rule; one for each turn where no mask for all of them is exact;
            the chosen and the rejected one of a preference row; none where it was dropped.
        tokens: how many tokens its examples would have without a limit.
        lost: how many tokens that would be trained on were dropped or cut.
    """

    row: Row
    examples: tuple[Example, ...]
    tokens: int
    lost: int

    @property
    def truncated(self) -> bool:
        """Whether any example of the row was cut."""
        return any(example.truncated for example in self.examples)

    def preference(self) -> PreferenceExample:
        """The pair that a preference row gives."""
        chosen, rejected = self.examples
        return PreferenceExample(chosen, rejected)
