"""Turns rows into examples. Many rows are tokenised together, because tokenizers work on all cores at once."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Final, TypeVar

from trainer.data.examples.chat_encoding import render_chat
from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.masks import MaskOptions
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.rendered_row import MaskedTokens, RenderedRow, TokenizedRow, TokenSpan
from trainer.data.examples.token_boundaries import Ids
from trainer.data.examples.tokenizer_thread import TokenizerThread
from trainer.data.rows import (
    ChatRow,
    CompletionRow,
    PreferenceRow,
    Row,
    TextRow,
    UnpairedPreferenceRow,
)
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, OnOverlong

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
        tokenized = each(chunks, lambda chunk: tokenizer.ids_of(_texts(chunk)))
        # Second call: the texts at the boundaries of spans, few of which are new.
        bounded = (_continue(chunk, iter(ids)) for chunk, ids in tokenized)
        for chunk, ids_of in each(bounded, lambda chunk: tokenizer.lookup(_boundary_texts(chunk))):
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


def _texts(chunk: _RenderedChunk) -> list[str]:
    return [
        text for rendered in chunk if isinstance(rendered, RenderedRow) for text in rendered.texts
    ]


def _continue(chunk: _RenderedChunk, ids: Iterator[Ids]) -> _TokenizedChunk:
    """Gives each rendered row the ids of its texts."""
    return [
        rendered
        if isinstance(rendered, DataError)
        else (rendered, rendered.continue_with(list(itertools.islice(ids, len(rendered.texts)))))
        for rendered in chunk
    ]


def _boundary_texts(chunk: _TokenizedChunk) -> set[str]:
    return {
        text for item in chunk if not isinstance(item, DataError) for text in item[1].boundary_texts
    }


def _mask_chunk(
    chunk: _TokenizedChunk, ids_of: Mapping[str, Ids], tokenizer: ModelTokenizer, data: DataSection
) -> Iterator[EncodedRow | DataError]:
    for item in chunk:
        if isinstance(item, DataError):
            yield item
            continue
        rendered, tokenized = item
        try:
            yield _fit_to_length(rendered, tokenized.apply_masks(ids_of), tokenizer, data)
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
            lambda ids: TokenizedRow.finished(
                MaskedTokens.train_on_all(_add_end(add_start(ids[0], tokenizer), tokenizer))
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

    def tokenize(ids: list[Ids]) -> TokenizedRow:
        prompt, both = (add_start(part, tokenizer) for part in ids)
        if both[: len(prompt)] != prompt:
            # A token crosses the boundary. Generation starts from the prompt's own tokens, so training does too.
            both = prompt + tokenizer.ids(row.completion)
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
    count = len(
        chosen.texts
    )  # the ids of the chosen side come first, then those of the rejected side

    def tokenize(ids: list[Ids]) -> TokenizedRow:
        first, second = chosen.continue_with(ids[:count]), rejected.continue_with(ids[count:])
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
    start = list(tokenizer.start_ids)
    return ids if start and ids[: len(start)] == start else start + ids


def _add_end(ids: Ids, tokenizer: ModelTokenizer) -> Ids:
    """Returns the ids with the end of sequence appended, unless they end with it already."""
    end = tokenizer.append_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _fit_to_length(
    rendered: RenderedRow,
    parts: Iterable[MaskedTokens],
    tokenizer: ModelTokenizer,
    data: DataSection,
) -> EncodedRow:
    """Returns the examples of a row; refuses, drops or cuts those longer than `data.max_length`.

    Raises:
        DataError: an example has no trained token, none before the end of a turn, or is too long; or both answers
            of a pair are the same.
    """
    row = rendered.row
    examples: list[Example] = []
    tokens = lost = 0
    for number, part in enumerate(parts):
        # No token predicts index 0, so a span begins at 1 at the earliest.
        spans = [(max(start, 1), end) for start, end in part.spans if end > max(start, 1)]
        if not spans or not _says_anything(part.ids, spans, tokenizer):
            raise _not_trainable(row, number, "an end of turn alone" if spans else "none")
        # Tokens after the last trained one change no loss and no gradient, so the example ends there.
        end = spans[-1][1]
        remaining = spans
        if end > data.max_length:
            if data.on_overlong is OnOverlong.ERROR:
                raise _overlong(row, end, data)
            cut = [
                (start, min(stop, data.max_length))
                for start, stop in spans
                if start < data.max_length
            ]
            remaining = cut if data.on_overlong is OnOverlong.TRUNCATE else []
        tokens += end
        lost += sum(stop - start for start, stop in spans) - sum(
            stop - start for start, stop in remaining
        )
        if remaining:
            examples.append(
                _make_example(part.ids, remaining, tokenizer, truncated=end > data.max_length)
            )
    if isinstance(row, PreferenceRow) and not _is_usable_pair(row, examples):
        lost += sum(example.targets for example in examples)
        examples = []
    if isinstance(row, UnpairedPreferenceRow):
        examples = [replace(example, label=row.label) for example in examples]
    return EncodedRow(row, tuple(examples), tokens, lost, rendered.unrendered)


def _says_anything(ids: Ids, spans: Sequence[TokenSpan], tokenizer: ModelTokenizer) -> bool:
    """Returns whether the trained tokens contain more than white space and ends of turns."""
    # The first tokens settle it for nearly every row, and decoding takes time.
    return any(
        tokenizer.text(
            [id_ for start, end in part for id_ in ids[start:end] if id_ not in tokenizer.stop_ids]
        ).strip()
        for part in (((start, min(start + 8, end)) for start, end in spans[:1]), spans)
    )


def _is_usable_pair(row: PreferenceRow, examples: list[Example]) -> bool:
    """Returns whether two answers are left that differ.

    One answer teaches nothing, nor do two that were cut to the same tokens.

    Raises:
        DataError: the answers were the same before anything was cut.
    """
    same = len(examples) == 2 and examples[0].ids == examples[1].ids
    if same and not any(example.truncated for example in examples):
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "both answers are the same tokens",
            field="rejected",
            expected="answers that the model's template and tokenizer tell apart",
            found="the same",
        )
    return len(examples) == 2 and not same


def _make_example(
    ids: Ids, spans: list[TokenSpan], tokenizer: ModelTokenizer, *, truncated: bool
) -> Example:
    end = spans[-1][1]
    trained = bytearray(end)
    for start, stop in spans:
        trained[start:stop] = b"\1" * (stop - start)
    stops = any(not tokenizer.stop_ids.isdisjoint(ids[start:stop]) for start, stop in spans)
    return Example(array("i", ids[:end]), bytes(trained), stops, truncated)


def _not_trainable(row: Row, number: int, found: str) -> DataError:
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "no token of the row would be trained on",
        field="rejected" if isinstance(row, PreferenceRow) and number else row.main_field,
        expected="at least two tokens, and one that says something before the end of the turn",
        found=found,
    )


def _overlong(row: Row, length: int, data: DataSection) -> DataError:
    return row.refuse(
        ErrorCode.DATASET_OVERLONG,
        "the row is too long",
        expected=f"at most {data.max_length} tokens",
        found=length,
        hint="raise data.max_length, or set data.on_overlong to drop or truncate",
    )
