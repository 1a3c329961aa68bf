"""Conversations: from the character spans of the assistant's turns to token spans.

A boundary is exact if the ids of the text before it are the first ids of the complete text, because generation
starts from these very ids. If a token crosses the boundary, the text before it and the text after it are
tokenised separately, as generation sees them, and each trained span becomes an example of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from trainer.data.examples.conservation import check_rendered
from trainer.data.examples.masks import MaskOptions, mask_not_exact, render_masked_texts
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.rendered_row import MaskedTokens, RenderedRow, TokenizedRow, TokenSpan
from trainer.data.examples.rendered_text import RenderedText
from trainer.data.examples.token_boundaries import (
    Ids,
    TextPrefix,
    TokenizedText,
    text_prefixes,
)
from trainer.data.rows import ChatRow


def render_chat(row: ChatRow, tokenizer: ModelTokenizer, options: MaskOptions) -> RenderedRow:
    """Renders a conversation.

    Raises:
        DataError: the template refuses it or leaves out a part of it, or no mask is exact; the latter also while
            masks are applied.
    """
    rendered = render_masked_texts(row, tokenizer, options)
    unrendered = check_rendered(row, rendered, tokenizer, options.allow_unrendered)

    def tokenize(tokenized: list[TokenizedText]) -> TokenizedRow:
        texts = [
            _find_prefixes(text, own, tokenizer)
            for text, own in zip(rendered, tokenized, strict=True)
        ]
        # What must be tokenised to find the boundaries of the spans among the ids.
        prefixes = (prefix for text in texts for span in text.prefixes or () for prefix in span)
        return TokenizedRow(
            tuple(prefix.rest for prefix in prefixes),
            lambda ids_of: tuple(
                example
                for text in texts
                for example in _mask_tokens(row, text, ids_of, tokenizer, options)
            ),
        )

    return RenderedRow(row, tuple(text.text for text in rendered), tokenize, unrendered)


class _BoundedText(NamedTuple):
    """A rendered text with its ids.

    Attributes:
        rendered: the text and its character spans.
        ids: its token ids.
        prefixes: for each trained span, the text up to its first character and up to its end; None if all of the
            text is trained on.
    """

    rendered: RenderedText
    ids: Ids
    prefixes: tuple[tuple[TextPrefix, TextPrefix], ...] | None


def _find_prefixes(
    rendered: RenderedText, tokenized: TokenizedText, tokenizer: ModelTokenizer
) -> _BoundedText:
    ids, special_tokens = tokenized
    if rendered.spans is None:
        return _BoundedText(rendered, ids, None)
    if special_tokens is None:
        special_tokens = tokenizer.special_token_finder.align(rendered.text, ids)
    positions = [position for span in rendered.spans for position in span]
    prefixes = list(text_prefixes(rendered.text, special_tokens, positions))
    return _BoundedText(rendered, ids, tuple(zip(prefixes[::2], prefixes[1::2], strict=True)))


def _mask_tokens(
    row: ChatRow,
    text: _BoundedText,
    ids_of: Mapping[str, Ids],
    tokenizer: ModelTokenizer,
    options: MaskOptions,
) -> Iterator[MaskedTokens]:
    """Yields the examples of a text: one, or one for each trained span if a token crosses a boundary.

    Raises:
        DataError: a token crosses a boundary, and the row may not be split or cannot be tokenised in parts.
    """
    if text.prefixes is None or text.rendered.spans is None:
        yield MaskedTokens.train_on_all(text.ids)
        return
    spans = [
        _find_token_span(text.ids, start, end, ids_of, tokenizer) for start, end in text.prefixes
    ]
    exact = [span for span in spans if span is not None]
    if len(exact) == len(spans):
        yield MaskedTokens(text.ids, tuple(exact))
    elif len(spans) > 1 and not options.split_turns:
        raise mask_not_exact(row, None, "a token crosses the boundary of a turn (data.split_turns)")
    else:
        for (first, last), (start, end) in zip(text.rendered.spans, text.prefixes, strict=True):
            # The ids of the prompt as generation will see them, followed by those of the turn by itself.
            before = start.ids(text.ids, ids_of)
            ids = before + array("i", tokenizer.ids(text.rendered.text[first:last]))
            # They must decode to the text: some tokenizers treat the beginning of a text differently.
            if tokenizer.text(ids) != tokenizer.text(end.ids(text.ids, ids_of)):
                raise mask_not_exact(row, None, "a token crosses the boundary of a turn")
            yield MaskedTokens(ids, ((len(before), _end_of_turn(ids, len(before), tokenizer)),))


def _find_token_span(
    text_ids: Ids,
    start: TextPrefix,
    end: TextPrefix,
    ids_of: Mapping[str, Ids],
    tokenizer: ModelTokenizer,
) -> TokenSpan | None:
    """Returns the span of a turn among the ids of the text; None if a token crosses one of its boundaries."""
    first = start.length_in(text_ids, ids_of)
    after = end.ids(text_ids, ids_of)
    if first is None or after[:first] != text_ids[:first]:
        return None
    last = _end_of_turn(after, first, tokenizer)
    return (first, last) if text_ids[:last] == after[:last] else None


def _end_of_turn(ids: Ids, start: int, tokenizer: ModelTokenizer) -> int:
    """Returns the index after the last stop token, if only white space follows: generation ends at that token."""
    for position in range(len(ids) - 1, start - 1, -1):
        if ids[position] in tokenizer.stop_ids:
            rest = ids[position + 1 :]
            return position + 1 if not rest or not tokenizer.text(rest).strip() else len(ids)
    return len(ids)
