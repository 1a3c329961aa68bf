"""Examples of at most `data.max_length` tokens, each with something to train on, from a row's tokens and spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.rendered_row import MaskedTokens, RenderedRow, TokenSpan
from trainer.data.examples.token_boundaries import Ids
from trainer.data.rows import PreferenceRow, Row, UnpairedPreferenceRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, OnOverlong


def fit_to_length(
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
    # A turn that stops at all mostly does so with its last token.
    stops = any(
        ids[stop - 1] in tokenizer.stop_ids or not tokenizer.stop_ids.isdisjoint(ids[start:stop])
        for start, stop in spans
    )
    return Example(ids[:end], bytes(trained), stops, truncated)


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
