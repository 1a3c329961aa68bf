"""Rows of a prompt and what follows it: completions, preferences, and plain text."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data.rows.chats import Document, Tools, messages, tools
from trainer.data.rows.row import ChatRow, CompletionRow, Message, PreferenceRow, Row, TextRow
from trainer.data.rows.values import refused, text, wrong


def completion(row: Row, document: Document) -> ChatRow | CompletionRow:
    """`{"prompt": …, "completion": …}`, both text or both lists of messages.

    Raises:
        DataError: a field is not of the agreed form.
    """
    return _continued(row, "completion", document["prompt"], document["completion"], _tools(row, document))


def whole(row: Row, document: Document) -> TextRow:
    """`{"text": …}`.

    Raises:
        DataError: it is no text, or empty.
    """
    return TextRow(row.file, row.index, text(row, "text", document["text"], empty=False))


def preference(row: Row, document: Document) -> PreferenceRow:
    """`{"prompt": …?, "chosen": …, "rejected": …}`, all text or all lists of messages.

    Without a prompt, what both sides begin with is it: whole messages, or text up to its last white space.

    Raises:
        DataError: a field is not of the agreed form, the sides are of different kinds or do not differ.
    """
    chosen, rejected = document["chosen"], document["rejected"]
    if chosen == rejected:
        raise refused(
            row, "both sides are the same", field="rejected", expected="another answer", found="the same"
        )
    prompt = document.get("prompt")
    if prompt is None:
        prompt, chosen, rejected = _common_prompt(row, chosen, rejected)
    offered = _tools(row, document)
    better = _continued(row, "chosen", prompt, chosen, offered)
    worse = _continued(row, "rejected", prompt, rejected, offered)
    return PreferenceRow(row.file, row.index, better, worse)


def _tools(row: Row, document: Document) -> Tools:
    return tools(row, document.get("tools"))


def _continued(row: Row, where: str, prompt: object, answer: object, offered: Tools) -> ChatRow | CompletionRow:
    if isinstance(prompt, list) and isinstance(answer, list):
        before = messages(row, "prompt", prompt)
        after = messages(row, where, answer)
        _check_answer(row, where, after)
        return ChatRow(row.file, row.index, before + after, offered, given=len(before))
    if isinstance(prompt, list):
        wrong(row, "prompt", f"text or a list of messages, as {where} is", prompt)
    if offered is not None:
        raise refused(row, "wrong keys", field="tools", expected="none beside plain text", found="a list")
    return CompletionRow(row.file, row.index, text(row, "prompt", prompt), text(row, where, answer, empty=False))


def _check_answer(row: Row, where: str, answer: tuple[Message, ...]) -> None:
    if not any(message.role == "assistant" for message in answer):
        expected = "at least one message of the assistant"
        raise refused(row, "nothing to learn", field=where, expected=expected, found="none")


def _common_prompt(row: Row, chosen: object, rejected: object) -> tuple[object, object, object]:
    if isinstance(chosen, list) and isinstance(rejected, list):
        shared = _shared(chosen, rejected)
        if not 0 < shared < min(len(chosen), len(rejected)):
            raise refused(row, "no prompt", field="chosen", expected="a prompt that both begin with", found="none")
        return chosen[:shared], chosen[shared:], rejected[shared:]
    better, worse = text(row, "chosen", chosen), text(row, "rejected", rejected)
    shared = _shared(better, worse)
    while shared and not better[shared - 1].isspace():
        shared -= 1
    shared = len(better[:shared].rstrip())  # the white space belongs to the answers: tokens begin with it
    if not shared or shared == min(len(better), len(worse)):
        raise refused(row, "no prompt", field="chosen", expected="a prompt that both begin with", found="none")
    return better[:shared], better[shared:], worse[shared:]


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))
