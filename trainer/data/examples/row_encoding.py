"""Rows → examples. Many rows are tokenised at once, because that is what tokenizers are quick at."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from trainer.data.examples.chat_encoding import draft_chat
from trainer.data.examples.chat_template import CharacterSpan
from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.masks import MaskOptions
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.rendered_row import MaskedTokens, RenderedRow, TokenizedRow
from trainer.data.examples.token_boundaries import Ids
from trainer.data.rows import ChatRow, CompletionRow, PreferenceRow, Row, TextRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, OnOverlong

CHUNK_ROWS: Final = 512
CHUNK_CHARACTERS: Final = 1 << 22
"""Rows are tokenised together until they are this many, or their texts this long."""


def encode(row: Row, tokens: ModelTokenizer, data: DataSection) -> tuple[Example, ...]:
    """Turn a row into its examples; see `EncodedRow`.

    Raises:
        DataError: the row is too long, cannot be rendered, or holds no token to train on.
    """
    (encoded,) = encode_rows([row], tokens, data)
    if isinstance(encoded, DataError):
        raise encoded
    return encoded.examples


def encode_rows(
    rows: Iterable[Row], tokens: ModelTokenizer, data: DataSection
) -> Iterator[EncodedRow | DataError]:
    """Turn rows into examples, in their order; for a row that cannot be one, its error is yielded."""
    rules = MaskOptions.of(data)
    for drafts in _chunks(_draft_or_error(row, tokens, rules) for row in rows):
        yield from _finish_chunk(drafts, tokens, data)


def _finish_chunk(
    drafts: list[RenderedRow | DataError], tokens: ModelTokenizer, data: DataSection
) -> Iterator[EncodedRow | DataError]:
    """Tokenise the texts of a chunk at once, then whatever else their boundaries need."""
    texts = [text for draft in drafts if isinstance(draft, RenderedRow) for text in draft.texts]
    ids = iter(tokens.ids_of(texts))
    located = [
        (draft.row, draft.locate(list(itertools.islice(ids, len(draft.texts)))))
        if isinstance(draft, RenderedRow)
        else draft
        for draft in drafts
    ]
    ids_of = tokens.lookup(text for one in located if isinstance(one, tuple) for text in one[1].needs)
    for one in located:
        yield one if isinstance(one, DataError) else _encoded_or_error(*one, ids_of, tokens, data)


def _chunks(drafts: Iterator[RenderedRow | DataError]) -> Iterator[list[RenderedRow | DataError]]:
    chunk: list[RenderedRow | DataError] = []
    characters = 0
    for draft in drafts:
        chunk.append(draft)
        characters += sum(map(len, draft.texts)) if isinstance(draft, RenderedRow) else 0
        if len(chunk) == CHUNK_ROWS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _draft_or_error(row: Row, tokens: ModelTokenizer, rules: MaskOptions) -> RenderedRow | DataError:
    try:
        return _draft(row, tokens, rules)
    except DataError as error:
        return error


def _encoded_or_error(
    row: Row, located: TokenizedRow, ids_of: Mapping[str, Ids], tokens: ModelTokenizer, data: DataSection
) -> EncodedRow | DataError:
    try:
        return _finish(row, located.mark(ids_of), tokens, data)
    except DataError as error:
        return error


def _draft(row: Row, tokens: ModelTokenizer, rules: MaskOptions) -> RenderedRow:
    if isinstance(row, ChatRow):
        return draft_chat(row, tokens, rules)
    if isinstance(row, CompletionRow):
        return _draft_completion(row, tokens, rules)
    if isinstance(row, TextRow):
        return RenderedRow(row, (row.text,), lambda ids: _whole_text(ids[0], tokens))
    if isinstance(row, PreferenceRow):
        return _draft_preference(row, tokens, rules)
    raise TypeError(f"unknown kind of row: {type(row).__name__}")


def _draft_preference(row: PreferenceRow, tokens: ModelTokenizer, rules: MaskOptions) -> RenderedRow:
    answers_only = replace(rules, assistant_only=True, completion_only=True, last_turn=False, split=False)
    chosen = _draft(row.chosen, tokens, answers_only)
    rejected = _draft(row.rejected, tokens, answers_only)
    count = len(chosen.texts)

    def locate(ids: list[Ids]) -> TokenizedRow:
        better, worse = chosen.locate(ids[:count]), rejected.locate(ids[count:])
        return TokenizedRow(better.needs + worse.needs, lambda ids_of: better.mark(ids_of) + worse.mark(ids_of))

    return RenderedRow(row, chosen.texts + rejected.texts, locate)


def _whole_text(ids: Ids, tokens: ModelTokenizer) -> TokenizedRow:
    return TokenizedRow.done(MaskedTokens.whole(_ended(_started(ids, tokens), tokens)))


def _draft_completion(row: CompletionRow, tokens: ModelTokenizer, rules: MaskOptions) -> RenderedRow:
    """The prompt as generation will see it, then the completion and the end of the sequence."""

    def locate(ids: list[Ids]) -> TokenizedRow:
        prompt, whole = (_started(part, tokens) for part in ids)
        if whole[: len(prompt)] != prompt:
            # A token spans the boundary. Generation starts from the prompt's own tokens, so training does too.
            whole = prompt + tokens.ids(row.completion)
        ended = _ended(whole, tokens)
        return TokenizedRow.done(MaskedTokens(ended, ((len(prompt) if rules.completion_only else 0, len(ended)),)))

    return RenderedRow(row, (row.prompt, row.prompt + row.completion), locate)


def _started(ids: Ids, tokens: ModelTokenizer) -> Ids:
    """`ids` behind what the tokenizer starts text with, once: the text may begin with it itself."""
    start = list(tokens.start_ids)
    return ids if start and ids[: len(start)] == start else start + ids


def _ended(ids: Ids, tokens: ModelTokenizer) -> Ids:
    """`ids` with the end of the sequence, once."""
    end = tokens.append_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _finish(row: Row, marked: Iterable[MaskedTokens], tokens: ModelTokenizer, data: DataSection) -> EncodedRow:
    """Bring the examples of a row to their length."""
    examples: list[Example] = []
    length = lost = 0
    for part in marked:
        spans = [(max(start, 1), end) for start, end in part.spans if end > max(start, 1)]
        if not spans:
            raise _not_trainable(row)
        end = spans[-1][1]
        if end > data.max_length and data.on_overlong is OnOverlong.ERROR:
            raise _overlong(row, end, data)
        kept = _kept(spans, end, data)
        length += end
        lost += _count(spans) - _count(kept)
        if kept:
            examples.append(_example(part.ids, kept, tokens, truncated=end > data.max_length))
    if isinstance(row, PreferenceRow) and not _differ(row, examples):
        lost += sum(example.targets for example in examples)
        examples = []
    return EncodedRow(row, tuple(examples), length, lost)


def _differ(row: Row, examples: list[Example]) -> bool:
    """Whether two answers are left that differ: one alone says nothing, nor do two that were cut to the same.

    Raises:
        DataError: they were the same before anything was cut.
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


def _kept(spans: list[CharacterSpan], end: int, data: DataSection) -> list[CharacterSpan]:
    if end <= data.max_length:
        return spans
    if data.on_overlong is OnOverlong.DROP:
        return []
    return [(start, min(stop, data.max_length)) for start, stop in spans if start < data.max_length]


def _count(spans: list[CharacterSpan]) -> int:
    return sum(end - start for start, end in spans)


def _example(ids: Ids, spans: list[CharacterSpan], tokens: ModelTokenizer, *, truncated: bool) -> Example:
    end = spans[-1][1]
    trained = bytearray(end)
    for start, stop in spans:
        trained[start:stop] = b"\1" * (stop - start)
    stops = any(not tokens.stop_ids.isdisjoint(ids[start:stop]) for start, stop in spans)
    return Example(array("i", ids[:end]), bytes(trained), stops, truncated)


def _not_trainable(row: Row) -> DataError:
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "no token of the row would be trained on",
        field="messages" if isinstance(row, ChatRow) else None,
        expected="at least two tokens, and one that the assistant says",
        found="none",
    )


def _overlong(row: Row, length: int, data: DataSection) -> DataError:
    return row.refuse(
        ErrorCode.DATASET_OVERLONG,
        "the row is too long",
        expected=f"at most {data.max_length} tokens",
        found=length,
        hint="raise data.max_length, or set data.on_overlong to drop or truncate",
    )
