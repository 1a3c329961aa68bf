"""What training works on: token ids, and the mask of those that enter the loss."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from trainer.data.rows import Row
from trainer.spec import RowPart


@dataclass(frozen=True, slots=True)
class Example:
    """A row, or one turn of it, ready for training.

    Attributes:
        ids: int32 [tokens]: token ids up to the last trained one; later tokens could not change a loss or a
            gradient.
        trained: one byte [tokens]: 1 where the prediction of the token enters the loss, else 0. Never 1 at index
            0, because no token predicts the first.
        stops: whether an end of turn or of text is among the trained ids.
        truncated: whether the row had more than `data.max_length` tokens and was cut.
        label: whether the answer is desirable; None for rows of all kinds but unpaired preferences.
    """

    ids: array[int]
    trained: bytes
    stops: bool
    truncated: bool = False
    label: bool | None = None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Number of trained tokens."""
        return self.trained.count(1)


@dataclass(frozen=True)
class PreferenceExample:
    """Two answers to one prompt, the first of which is preferred. The tokens of the prompt are not trained."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class EncodedRow:
    """The outcome of encoding a row.

    Attributes:
        row: the row.
        examples: usually one; one for each turn if no mask for all turns is exact; the chosen and the rejected
            one of a preference row; none if the row was dropped.
        tokens: number of tokens that the examples would have without `data.max_length`.
        lost: number of trained tokens that were dropped or cut.
        unrendered: parts of the row that the chat template leaves out.
    """

    row: Row
    examples: tuple[Example, ...]
    tokens: int
    lost: int
    unrendered: frozenset[RowPart] = frozenset()

    @property
    def truncated(self) -> bool:
        """Whether an example of the row was cut."""
        return any(example.truncated for example in self.examples)

    def preference(self) -> PreferenceExample:
        """Returns the pair of a preference row."""
        chosen, rejected = self.examples
        return PreferenceExample(chosen, rejected)
