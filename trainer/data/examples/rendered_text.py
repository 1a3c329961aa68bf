"""A rendered conversation, or the first messages of one, with the spans that are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trainer.data.examples.chat_template import CharacterSpan
from trainer.data.examples.turn_forms import TurnForm


class RenderedTurn(NamedTuple):
    """A trained turn: the index of its message, and its spans in the text, in order."""

    number: int
    spans: tuple[CharacterSpan, ...]


@dataclass(frozen=True)
class RenderedText:
    """The text of the first messages of a row.

    Attributes:
        text: their rendering.
        count: the number of these messages.
        turns: the turns of it that are trained on, in order; None means all of the text.
        form: how the messages were rendered.
    """

    text: str
    count: int
    turns: tuple[RenderedTurn, ...] | None
    form: TurnForm = TurnForm.PLAIN

    @property
    def spans(self) -> tuple[CharacterSpan, ...] | None:
        """The spans that are trained on, in order; None means all of the text."""
        return (
            None
            if self.turns is None
            else tuple(span for turn in self.turns for span in turn.spans)
        )
