"""A row on its way to an example: what must be tokenised for it, in two rounds, and what follows from the ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.data.examples.chat_template import CharacterSpan
from trainer.data.examples.token_boundaries import Ids
from trainer.data.rows import Row


@dataclass(frozen=True)
class MaskedTokens:
    """Token ids, and which parts of them are trained on, as positions."""

    ids: Ids
    spans: tuple[CharacterSpan, ...]

    @classmethod
    def whole(cls, ids: Ids) -> MaskedTokens:
        """All of it is trained on."""
        return cls(ids, ((0, len(ids)),))


@dataclass(frozen=True)
class TokenizedRow:
    """A row whose texts are tokenised.

    Attributes:
        needs: what else must be tokenised; short, and often the same for many rows.
        mark: takes the ids of these, and tells what is trained on, for each example of the row.
    """

    needs: tuple[str, ...]
    mark: Callable[[Mapping[str, Ids]], tuple[MaskedTokens, ...]]

    @classmethod
    def done(cls, *marked: MaskedTokens) -> TokenizedRow:
        """Nothing else must be tokenised."""
        return cls((), lambda _: marked)


@dataclass(frozen=True)
class RenderedRow:
    """A row whose texts are laid out.

    Attributes:
        row: the row.
        texts: what to tokenise.
        locate: takes their ids, in this order.
    """

    row: Row
    texts: tuple[str, ...]
    locate: Callable[[list[Ids]], TokenizedRow]
