"""One row → one example: token ids, and which of them the loss is taken on.

The mask of a conversation is derived from the model's own chat template, without markers in it. For the
assistant's turn i, three renderings are compared:

- *before*: the messages up to it, with the generation prompt: what the model will be given;
- *after*: the messages up to and with it;
- *whole*: the whole row.

Where *before* is a beginning of *after*, and both are beginnings of *whole*, in text and in token ids, the
tokens between them are exactly what the model must generate. Where they are not (a template that rewrites earlier
turns, a token that spans the boundary), no mask is exact, and the row is refused rather than trained on wrongly.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from trainer.errors import ErrorCode
from trainer.rows import ChatRow, CompletionRow, Row, TextRow
from trainer.spec import DataSection, OnOverlong
from trainer.worker.tokens import TemplateRefusedError, Tokens


@dataclass(frozen=True)
class Example:
    """A row, ready for training.

    Attributes:
        ids: token ids, up to the last one that is trained on: what follows it could not change anything.
        trained: one byte for each id: 1 where the loss is taken, 0 elsewhere; never 1 at position 0.
        stops: whether an end of turn (or of text) is among the trained ids.
        truncated: whether the row had more than `max_length` tokens and was cut.
    """

    ids: array[int]
    trained: bytes
    stops: bool
    truncated: bool = False

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Number of tokens that are trained on."""
        return sum(self.trained)


@dataclass(frozen=True)
class _Marked:
    ids: list[int]
    trained: bytearray


def encode(row: Row, tokens: Tokens, data: DataSection) -> Example | None:
    """Turn a row into an example.

    Returns:
        None where `data.on_overlong` says that the row is dropped, or where truncation left nothing to train on.

    Raises:
        DataError: the row is too long, cannot be rendered, or holds no token to train on.
    """
    marked = _mark(row, tokens, data)
    marked.trained[:1] = bytes(len(marked.trained[:1]))  # nothing predicts the first token
    if 1 not in marked.trained:
        raise _not_trainable(row, data)
    end = marked.trained.rindex(1) + 1
    if end > data.max_length:
        return _overlong(row, tokens, data, marked, end)
    return _example(marked, end, tokens)


def _overlong(row: Row, tokens: Tokens, data: DataSection, marked: _Marked, length: int) -> Example | None:
    if data.on_overlong is OnOverlong.ERROR:
        raise row.refuse(
            ErrorCode.DATASET_OVERLONG,
            "the row is too long",
            expected=f"at most {data.max_length} tokens",
            found=length,
            hint="raise data.max_length, or set data.on_overlong to drop or truncate",
        )
    kept = marked.trained[: data.max_length]
    if data.on_overlong is OnOverlong.DROP or 1 not in kept:
        return None
    return _example(marked, kept.rindex(1) + 1, tokens, truncated=True)


def _example(marked: _Marked, end: int, tokens: Tokens, *, truncated: bool = False) -> Example:
    pairs = zip(marked.ids[:end], marked.trained, strict=False)
    stops = any(token in tokens.stop_ids for token, trained in pairs if trained)
    return Example(array("i", marked.ids[:end]), bytes(marked.trained[:end]), stops, truncated)


def _not_trainable(row: Row, data: DataSection) -> Exception:
    chat = isinstance(row, ChatRow)
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "no token of the row would be trained on",
        field="messages" if chat else None,
        expected="a message of the assistant" if chat and data.assistant_only_loss else "at least two tokens",
        found="none",
    )


def _mark(row: Row, tokens: Tokens, data: DataSection) -> _Marked:
    if isinstance(row, ChatRow):
        return _mark_chat(row, tokens, data)
    if isinstance(row, CompletionRow):
        return _mark_completion(row, tokens, data)
    if isinstance(row, TextRow):
        ids = _ended(_started(tokens.ids(row.text), tokens), tokens)
        return _Marked(ids, bytearray(b"\1") * len(ids))
    raise TypeError(f"unknown kind of row: {type(row).__name__}")


def _mark_completion(row: CompletionRow, tokens: Tokens, data: DataSection) -> _Marked:
    """The prompt as generation will see it, then the completion and the end of the sequence."""
    prompt = _started(tokens.ids(row.prompt), tokens)
    whole = _started(tokens.ids(row.prompt + row.completion), tokens)
    if whole[: len(prompt)] != prompt:
        # A token spans the boundary. Generation starts from the prompt's own tokens, so training does too.
        whole = prompt + tokens.ids(row.completion)
    ids = _ended(whole, tokens)
    masked = len(prompt) if data.completion_only_loss else 0
    return _Marked(ids, bytearray(masked) + bytearray(b"\1") * (len(ids) - masked))


def _started(ids: list[int], tokens: Tokens) -> list[int]:
    """`ids` behind what the tokenizer starts text with, once: the text may begin with it itself."""
    start = list(tokens.start_ids)
    return ids if start and ids[: len(start)] == start else start + ids


def _ended(ids: list[int], tokens: Tokens) -> list[int]:
    """`ids` with the end of the sequence, once."""
    end = tokens.append_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _mark_chat(row: ChatRow, tokens: Tokens, data: DataSection) -> _Marked:
    whole_text = _render(row, tokens, len(row.messages), prompt=False)
    whole = _Whole(whole_text, tokens.ids(whole_text))
    if not data.assistant_only_loss:
        return _Marked(whole.ids, bytearray(b"\1") * len(whole.ids))
    trained = bytearray(len(whole.ids))
    for number, message in enumerate(row.messages):
        if message.role == "assistant":
            start, end = _turn(row, tokens, number, whole)
            trained[start:end] = b"\1" * (end - start)
    return _Marked(whole.ids, trained)


@dataclass(frozen=True)
class _Whole:
    text: str
    ids: list[int]


def _turn(row: ChatRow, tokens: Tokens, number: int, whole: _Whole) -> tuple[int, int]:
    """Where in the whole row's ids the assistant's turn `number` lies: [start, end)."""
    if number == 0:
        raise _not_derivable(row, number, "the assistant speaks first, so generation would have no prompt")
    before = _render(row, tokens, number, prompt=True)
    after = _render(row, tokens, number + 1, prompt=False)
    if not (after.startswith(before) and whole.text.startswith(after)):
        raise _not_derivable(row, number, "the chat template renders a turn differently once others follow it")
    start_ids, after_ids = tokens.ids(before), tokens.ids(after)
    start = len(start_ids)
    end = _end_of_turn(after_ids, start, tokens)
    if after_ids[:start] != start_ids or whole.ids[:end] != after_ids[:end]:
        raise _not_derivable(row, number, "a token spans the boundary of a turn")
    return start, end


def _end_of_turn(ids: list[int], start: int, tokens: Tokens) -> int:
    """Behind the turn's last stop token, if nothing but white space follows: generation never gets further."""
    stops = [position for position in range(start, len(ids)) if ids[position] in tokens.stop_ids]
    if stops and not tokens.text(ids[stops[-1] + 1 :]).strip():
        return stops[-1] + 1
    return len(ids)


def _render(row: ChatRow, tokens: Tokens, count: int, *, prompt: bool) -> str:
    try:
        return tokens.render(row.messages[:count], prompt=prompt)
    except TemplateRefusedError:
        whole = count == len(row.messages) and not prompt
        raise row.refuse(
            ErrorCode.DATASET_ROW_INVALID,
            "the model's chat template refuses these messages",
            field="messages" if whole else f"messages[0:{count}]",
            expected="roles and order that the template knows",
            found=f"{count} messages",
        ) from None


def _not_derivable(row: ChatRow, number: int, reason: str) -> Exception:
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        f"which tokens are the assistant's cannot be told exactly: {reason}",
        field=f"messages[{number}]",
        expected="renderings that begin with one another",
        found="different beginnings",
        hint="end each row with its only assistant turn, or set data.assistant_only_loss to false",
    )
