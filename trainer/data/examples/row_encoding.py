"""Turns rows into examples. Many rows are tokenised together, because tokenizers work on all cores at once."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Final, TypeVar

from trainer.data.examples.chat_encoding import render_chat
from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.length_limit import fit_to_length
from trainer.data.examples.masks import MaskOptions
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.rendered_row import MaskedTokens, RenderedRow, TokenizedRow
from trainer.data.examples.token_boundaries import Ids, TokenizedText
from trainer.data.examples.tokenizer_thread import TokenizerThread
from trainer.data.rows import (
    ChatRow,
    CompletionRow,
    PreferenceRow,
    Row,
    TextRow,
    UnpairedPreferenceRow,
)
from trainer.errors import DataError
from trainer.spec import DataSection

CHUNK_ROWS: Final = 512
CHUNK_CHARACTERS: Final = 1 << 20
"""Rows are tokenised together until there are `CHUNK_ROWS`, or their texts have this many characters.

The tokenizer needs about 100 bytes a token while it works.
"""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def encode(row: Row, tokenizer: ModelTokenizer, data: DataSection) -> tuple[Example, ...]:
    """Returns the examples of one row; see `EncodedRow`.

    Raises:
        DataError: the row is too long, cannot be rendered, or has no token to train on.
    """
    (encoded,) = encode_rows([row], tokenizer, data)
    if isinstance(encoded, DataError):
        raise encoded
    return encoded.examples


def encode_rows(
    rows: Iterable[Row | DataError],
    tokenizer: ModelTokenizer,
    data: DataSection,
    thread: TokenizerThread | None = None,
) -> Iterator[EncodedRow | DataError]:
    """Yields the encoded rows in their order, or the error of a row that cannot be read or become examples.

    Where texts go to the tokenizer entire, a thread tokenises, on all cores, while this one reads and renders
    later rows and masks earlier ones. To look words up is the interpreter's work, and done in turn. The result
    depends on the rows alone.

    Args:
        rows: the rows, or the errors that refuse them.
        tokenizer: tokenizer and chat template.
        data: how rows become examples.
        thread: the thread, which stays open; None opens one.
    """
    with closing(TokenizerThread()) if thread is None else nullcontext(thread) as thread:
        chunks = _render_chunks(rows, tokenizer, MaskOptions.from_section(data))
        each = _each_in_turn if tokenizer.cuts_texts else thread.each
        # First call of the tokenizer: the texts of all rows.
        tokenized = each(
            chunks,
            lambda chunk: tokenizer.tokenize(
                [text for row in chunk if isinstance(row, RenderedRow) for text in row.texts]
            ),
        )
        # Second call: the texts at the boundaries of spans, few of which are new.
        bounded = (_continue(chunk, iter(texts)) for chunk, texts in tokenized)
        looked_up = each(
            bounded,
            lambda chunk: tokenizer.lookup(
                {text for row in chunk if isinstance(row, tuple) for text in row[1].boundary_texts}
            ),
        )
        for chunk, ids_of in looked_up:
            yield from _mask_chunk(chunk, ids_of, tokenizer, data)


def _each_in_turn(
    items: Iterable[_Item], work: Callable[[_Item], _Result]
) -> Iterator[tuple[_Item, _Result]]:
    for item in items:
        yield item, work(item)


_RenderedChunk = list[RenderedRow | DataError]
_TokenizedChunk = list[tuple[RenderedRow, TokenizedRow] | DataError]


def _render_chunks(
    rows: Iterable[Row | DataError], tokenizer: ModelTokenizer, options: MaskOptions
) -> Iterator[_RenderedChunk]:
    chunk: _RenderedChunk = []
    characters = 0
    for row in rows:
        try:
            rendered = row if isinstance(row, DataError) else _render(row, tokenizer, options)
        except DataError as error:
            rendered = error
        chunk.append(rendered)
        if isinstance(rendered, RenderedRow):
            characters += sum(map(len, rendered.texts))
        if len(chunk) == CHUNK_ROWS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _continue(chunk: _RenderedChunk, texts: Iterator[TokenizedText]) -> _TokenizedChunk:
    """Gives each rendered row its tokenised texts."""
    return [
        rendered
        if isinstance(rendered, DataError)
        else (rendered, rendered.continue_with(list(itertools.islice(texts, len(rendered.texts)))))
        for rendered in chunk
    ]


def _mask_chunk(
    chunk: _TokenizedChunk, ids_of: Mapping[str, Ids], tokenizer: ModelTokenizer, data: DataSection
) -> Iterator[EncodedRow | DataError]:
    for item in chunk:
        if isinstance(item, DataError):
            yield item
            continue
        rendered, tokenized = item
        try:
            yield fit_to_length(rendered, tokenized.apply_masks(ids_of), tokenizer, data)
        except DataError as error:
            yield error


def _render(row: Row, tokenizer: ModelTokenizer, options: MaskOptions) -> RenderedRow:
    if isinstance(row, ChatRow):
        return render_chat(row, tokenizer, options)
    if isinstance(row, CompletionRow):
        return _render_completion(row, tokenizer, options)
    if isinstance(row, TextRow):
        return RenderedRow(
            row,
            (row.text,),
            lambda texts: TokenizedRow.finished(
                MaskedTokens.train_on_all(_add_end(add_start(texts[0].ids, tokenizer), tokenizer))
            ),
        )
    if isinstance(row, PreferenceRow):
        return _render_preference(row, tokenizer, options)
    if isinstance(row, UnpairedPreferenceRow):
        return replace(_render(row.answer, tokenizer, _judging(options)), row=row)
    raise TypeError(f"unknown kind of row: {type(row).__name__}")


def _render_completion(
    row: CompletionRow, tokenizer: ModelTokenizer, options: MaskOptions
) -> RenderedRow:
    """Renders the prompt as generation will see it, then the completion and the end of the sequence."""

    def tokenize(texts: list[TokenizedText]) -> TokenizedRow:
        prompt, both = (add_start(text.ids, tokenizer) for text in texts)
        if both[: len(prompt)] != prompt:
            # A token crosses the boundary. Generation starts from the prompt's own tokens, so training does too.
            both = prompt + array("i", tokenizer.ids(row.completion))
        complete = _add_end(both, tokenizer)
        first = len(prompt) if options.completion_only else 0
        return TokenizedRow.finished(MaskedTokens(complete, ((first, len(complete)),)))

    return RenderedRow(row, (row.prompt, row.prompt + row.completion), tokenize)


def _render_preference(
    row: PreferenceRow, tokenizer: ModelTokenizer, options: MaskOptions
) -> RenderedRow:
    chosen, rejected = (
        _render(side, tokenizer, _judging(options)) for side in (row.chosen, row.rejected)
    )
    # The ids of the chosen side come first, then those of the rejected side.
    count = len(chosen.texts)

    def tokenize(texts: list[TokenizedText]) -> TokenizedRow:
        first, second = chosen.continue_with(texts[:count]), rejected.continue_with(texts[count:])
        return TokenizedRow(
            first.boundary_texts + second.boundary_texts,
            lambda ids_of: first.apply_masks(ids_of) + second.apply_masks(ids_of),
        )

    return RenderedRow(
        row, chosen.texts + rejected.texts, tokenize, chosen.unrendered | rejected.unrendered
    )


def _judging(options: MaskOptions) -> MaskOptions:
    """Returns the options for answers that are judged: all of the answer counts, whatever the section says."""
    return replace(
        options, assistant_only=True, completion_only=True, last_turn=False, split_turns=False
    )


def add_start(ids: Ids, tokenizer: ModelTokenizer) -> Ids:
    """Returns the ids after the tokenizer's start of text, unless they begin with it already."""
    start = array("i", tokenizer.start_ids)
    return ids if start and ids[: len(start)] == start else start + ids


def _add_end(ids: Ids, tokenizer: ModelTokenizer) -> Ids:
    """Returns the ids with the end of sequence appended, unless they end with it already."""
    end = tokenizer.append_id
    return ids if end is None or (ids and ids[-1] == end) else ids + array("i", [end])
