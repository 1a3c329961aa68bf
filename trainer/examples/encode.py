"""Rows → examples. Many rows are tokenised at once, because that is what tokenizers are quick at.

For each row the texts are laid out that its mask needs: the text itself, and the beginnings of it that end where a
trained part begins or ends. A boundary is exact where the beginning's own tokens are the beginning of the text's
tokens: generation starts from just these. Where a token spans the boundary, the text before it and the text behind
it are tokenised by themselves, since that is how generation meets them, and each trained part becomes an example.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from trainer.errors import DataError, ErrorCode
from trainer.examples.example import Encoded, Example
from trainer.examples.masks import MarkedText, Rules, mark_chat, not_derivable
from trainer.examples.template import Span
from trainer.examples.tokens import Tokens
from trainer.rows import ChatRow, CompletionRow, PreferenceRow, Row, TextRow
from trainer.spec import DataSection, OnOverlong

CHUNK_ROWS: Final = 512
CHUNK_CHARACTERS: Final = 1 << 22
"""Rows are tokenised together until they are this many, or their texts this long."""

Ids = list[int]


@dataclass(frozen=True)
class _Marked:
    """Token ids, and which parts of them are trained on, as positions."""

    ids: Ids
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class _Draft:
    """A row before its texts are tokenised.

    Attributes:
        row: the row.
        texts: what to tokenise.
        mark: takes their ids, in this order, and tells what is trained on, for each example of the row.
    """

    row: Row
    texts: tuple[str, ...]
    mark: Callable[[list[Ids]], tuple[_Marked, ...]]


def encode(row: Row, tokens: Tokens, data: DataSection) -> tuple[Example, ...]:
    """Turn a row into its examples; see `Encoded`.

    Raises:
        DataError: the row is too long, cannot be rendered, or holds no token to train on.
    """
    (encoded,) = encode_rows([row], tokens, data)
    if isinstance(encoded, DataError):
        raise encoded
    return encoded.examples


def encode_rows(rows: Iterable[Row], tokens: Tokens, data: DataSection) -> Iterator[Encoded | DataError]:
    """Turn rows into examples, in their order; for a row that cannot be one, its error is yielded."""
    rules = Rules.of(data)
    for drafts in _chunks(_draft_or_error(row, tokens, rules) for row in rows):
        texts = [text for draft in drafts if isinstance(draft, _Draft) for text in draft.texts]
        ids = iter(tokens.ids_of(texts))
        for draft in drafts:
            if isinstance(draft, _Draft):
                own = list(itertools.islice(ids, len(draft.texts)))
                yield _encoded_or_error(draft, own, tokens, data)
            else:
                yield draft


def _chunks(drafts: Iterator[_Draft | DataError]) -> Iterator[list[_Draft | DataError]]:
    chunk: list[_Draft | DataError] = []
    characters = 0
    for draft in drafts:
        chunk.append(draft)
        characters += sum(map(len, draft.texts)) if isinstance(draft, _Draft) else 0
        if len(chunk) == CHUNK_ROWS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _draft_or_error(row: Row, tokens: Tokens, rules: Rules) -> _Draft | DataError:
    try:
        return _draft(row, tokens, rules)
    except DataError as error:
        return error


def _encoded_or_error(draft: _Draft, ids: list[Ids], tokens: Tokens, data: DataSection) -> Encoded | DataError:
    try:
        return _finish(draft.row, draft.mark(ids), tokens, data)
    except DataError as error:
        return error


def _draft(row: Row, tokens: Tokens, rules: Rules) -> _Draft:
    if isinstance(row, ChatRow):
        return _draft_chat(row, tokens, rules)
    if isinstance(row, CompletionRow):
        return _draft_completion(row, tokens, rules)
    if isinstance(row, TextRow):
        return _Draft(row, (row.text,), lambda ids: (_all_of(_ended(_started(ids[0], tokens), tokens)),))
    if isinstance(row, PreferenceRow):
        return _draft_preference(row, tokens, rules)
    raise TypeError(f"unknown kind of row: {type(row).__name__}")


def _draft_preference(row: PreferenceRow, tokens: Tokens, rules: Rules) -> _Draft:
    answers_only = replace(rules, assistant_only=True, completion_only=True, last_turn=False, split=False)
    chosen = _draft(row.chosen, tokens, answers_only)
    rejected = _draft(row.rejected, tokens, answers_only)
    count = len(chosen.texts)
    return _Draft(
        row,
        chosen.texts + rejected.texts,
        lambda ids: chosen.mark(ids[:count]) + rejected.mark(ids[count:]),
    )


def _draft_completion(row: CompletionRow, tokens: Tokens, rules: Rules) -> _Draft:
    """The prompt as generation will see it, then the completion and the end of the sequence."""

    def mark(ids: list[Ids]) -> tuple[_Marked, ...]:
        prompt, whole = (_started(part, tokens) for part in ids)
        if whole[: len(prompt)] != prompt:
            # A token spans the boundary. Generation starts from the prompt's own tokens, so training does too.
            whole = prompt + tokens.ids(row.completion)
        ended = _ended(whole, tokens)
        return (_Marked(ended, ((len(prompt) if rules.completion_only else 0, len(ended)),)),)

    return _Draft(row, (row.prompt, row.prompt + row.completion), mark)


def _started(ids: Ids, tokens: Tokens) -> Ids:
    """`ids` behind what the tokenizer starts text with, once: the text may begin with it itself."""
    start = list(tokens.start_ids)
    return ids if start and ids[: len(start)] == start else start + ids


def _ended(ids: Ids, tokens: Tokens) -> Ids:
    """`ids` with the end of the sequence, once."""
    end = tokens.append_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _all_of(ids: Ids) -> _Marked:
    return _Marked(ids, ((0, len(ids)),))


def _draft_chat(row: ChatRow, tokens: Tokens, rules: Rules) -> _Draft:
    marked = mark_chat(row, tokens, rules)
    texts = [_texts(part) for part in marked]

    def mark(ids: list[Ids]) -> tuple[_Marked, ...]:
        rest = iter(ids)
        known = [dict(zip(own, rest, strict=False)) for own in texts]
        parts = zip(marked, known, strict=True)
        return tuple(one for part, ids_of in parts for one in _positions(row, part, ids_of, tokens, rules))

    return _Draft(row, tuple(itertools.chain.from_iterable(texts)), mark)


def _texts(part: MarkedText) -> list[str]:
    """The text, and for each span what comes before it and what ends with it; each once."""
    ends = [end for span in part.spans or () for end in span]
    return list(dict.fromkeys((part.text, *(part.text[:end] for end in ends))))


def _positions(
    row: ChatRow, part: MarkedText, ids_of: Mapping[str, Ids], tokens: Tokens, rules: Rules
) -> Iterator[_Marked]:
    """The text's examples: one, or where a token spans a boundary, one for each part that is trained on."""
    whole = ids_of[part.text]
    if part.spans is None:
        yield _all_of(whole)
        return
    beginnings = [(ids_of[part.text[:start]], ids_of[part.text[:end]]) for start, end in part.spans]
    spans = [_token_span(whole, before, after, tokens) for before, after in beginnings]
    exact = [span for span in spans if span is not None]
    if len(exact) == len(spans):
        yield _Marked(whole, tuple(exact))
    elif len(spans) > 1 and not rules.split:
        raise not_derivable(row, None, "a token spans the boundary of a turn (data.split_turns)")
    else:
        for (start, end), (before, after) in zip(part.spans, beginnings, strict=True):
            yield _continued(row, before, part.text[start:end], after, tokens)


def _token_span(whole: Ids, before: Ids, after: Ids, tokens: Tokens) -> Span | None:
    """Where the turn lies in the ids of the whole; None where a token spans one of its boundaries."""
    start = len(before)
    end = _end_of_turn(after, start, tokens)
    return (start, end) if after[:start] == before and whole[:end] == after[:end] else None


def _continued(row: ChatRow, before: Ids, said: str, after: Ids, tokens: Tokens) -> _Marked:
    """The prompt as generation will see it, with its own tokens, and then what must be generated.

    Raises:
        DataError: these tokens do not make the same text: the tokenizer writes the beginning of one differently.
    """
    ids = before + tokens.ids(said)
    if tokens.text(ids) != tokens.text(after):
        raise not_derivable(row, None, "a token spans the boundary of a turn")
    return _Marked(ids, ((len(before), _end_of_turn(ids, len(before), tokens)),))


def _end_of_turn(ids: Ids, start: int, tokens: Tokens) -> int:
    """Behind the turn's last stop token, if nothing but white space follows: generation never gets further."""
    for position in range(len(ids) - 1, start - 1, -1):
        if ids[position] in tokens.stop_ids:
            rest = ids[position + 1 :]
            return position + 1 if not rest or not tokens.text(rest).strip() else len(ids)
    return len(ids)


def _finish(row: Row, marked: tuple[_Marked, ...], tokens: Tokens, data: DataSection) -> Encoded:
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
    if isinstance(row, PreferenceRow) and len(examples) != 2:
        examples = []  # one side alone says nothing
    return Encoded(row, tuple(examples), length, lost)


def _kept(spans: list[Span], end: int, data: DataSection) -> list[Span]:
    if end <= data.max_length:
        return spans
    if data.on_overlong is OnOverlong.DROP:
        return []
    return [(start, min(stop, data.max_length)) for start, stop in spans if start < data.max_length]


def _count(spans: list[Span]) -> int:
    return sum(end - start for start, end in spans)


def _example(ids: Ids, spans: list[Span], tokens: Tokens, *, truncated: bool) -> Example:
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
