"""Conversations: where in their token ids the assistant speaks.

A boundary is exact where the ids of what comes before it are the beginning of the ids of all: generation starts
from just these. Where a token spans the boundary, the text before it and the text behind it are tokenised by
themselves, since that is how generation meets them, and each trained part becomes an example of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.data.examples.chat_template import CharacterSpan
from trainer.data.examples.masks import MaskOptions, RenderedText, mark_chat, not_derivable
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.rendered_row import MaskedTokens, RenderedRow, TokenizedRow
from trainer.data.examples.token_boundaries import Ids, TextPrefix, text_prefixes
from trainer.data.rows import ChatRow


def draft_chat(row: ChatRow, tokens: ModelTokenizer, rules: MaskOptions) -> RenderedRow:
    """Lay a conversation out.

    Raises:
        DataError: the template refuses it, or no mask is exact; also when the ids are located.
    """
    marked = mark_chat(row, tokens, rules)

    def locate(ids: list[Ids]) -> TokenizedRow:
        parts = [_bounded(part, whole, tokens) for part, whole in zip(marked, ids, strict=True)]
        return TokenizedRow(
            tuple(text for part in parts for text in part.needs()),
            lambda ids_of: tuple(one for part in parts for one in _positions(row, part, ids_of, tokens, rules)),
        )

    return RenderedRow(row, tuple(part.text for part in marked), locate)


@dataclass(frozen=True)
class _Bounded:
    """A text with its ids, and where each trained part of it begins and ends; None: all of it is trained on."""

    text: RenderedText
    ids: Ids
    spans: tuple[tuple[TextPrefix, TextPrefix], ...] | None

    def needs(self) -> Iterator[str]:
        """What must be tokenised to know the boundaries."""
        return (beginning.rest for span in self.spans or () for beginning in span)


def _bounded(part: RenderedText, ids: Ids, tokens: ModelTokenizer) -> _Bounded:
    if part.spans is None:
        return _Bounded(part, ids, None)
    positions = [position for span in part.spans for position in span]
    found = list(text_prefixes(part.text, tokens.anchors.align(part.text, ids), positions))
    return _Bounded(part, ids, tuple(zip(found[::2], found[1::2], strict=True)))


def _positions(
    row: ChatRow, part: _Bounded, ids_of: Mapping[str, Ids], tokens: ModelTokenizer, rules: MaskOptions
) -> Iterator[MaskedTokens]:
    """The text's examples: one, or where a token spans a boundary, one for each part that is trained on."""
    if part.spans is None or part.text.spans is None:
        yield MaskedTokens.whole(part.ids)
        return
    spans = [_token_span(part.ids, start, end, ids_of, tokens) for start, end in part.spans]
    exact = [span for span in spans if span is not None]
    if len(exact) == len(spans):
        yield MaskedTokens(part.ids, tuple(exact))
    elif len(spans) > 1 and not rules.split:
        raise not_derivable(row, None, "a token spans the boundary of a turn (data.split_turns)")
    else:
        for (first, last), (start, end) in zip(part.text.spans, part.spans, strict=True):
            before, after = start.ids(part.ids, ids_of), end.ids(part.ids, ids_of)
            yield _continued(row, before, part.text.text[first:last], after, tokens)


def _token_span(
    whole: Ids, start: TextPrefix, end: TextPrefix, ids_of: Mapping[str, Ids], tokens: ModelTokenizer
) -> CharacterSpan | None:
    """Where the turn lies in the ids of the whole; None where a token spans one of its boundaries."""
    first = start.length_in(whole, ids_of)
    after = end.ids(whole, ids_of)
    if first is None or after[:first] != whole[:first]:
        return None
    last = _end_of_turn(after, first, tokens)
    return (first, last) if whole[:last] == after[:last] else None


def _continued(row: ChatRow, before: Ids, said: str, after: Ids, tokens: ModelTokenizer) -> MaskedTokens:
    """The prompt as generation will see it, with its own tokens, and then what must be generated.

    Raises:
        DataError: these tokens do not make the same text: the tokenizer writes the beginning of one differently.
    """
    ids = before + tokens.ids(said)
    if tokens.text(ids) != tokens.text(after):
        raise not_derivable(row, None, "a token spans the boundary of a turn")
    return MaskedTokens(ids, ((len(before), _end_of_turn(ids, len(before), tokens)),))


def _end_of_turn(ids: Ids, start: int, tokens: ModelTokenizer) -> int:
    """Behind the turn's last stop token, if nothing but white space follows: generation never gets further."""
    for position in range(len(ids) - 1, start - 1, -1):
        if ids[position] in tokens.stop_ids:
            rest = ids[position + 1 :]
            return position + 1 if not rest or not tokens.text(rest).strip() else len(ids)
    return len(ids)
