"""Whether the texts that are trained on contain everything that their conversation says.

A chat template prints what its author thought of. Many print no reasoning, no calls or no tools, and some cut the
reasoning of earlier turns. So every text of a row is looked up in its rendering: the turns in their order; system
turns and tools anywhere, because templates move these.

A text such as "a" would be found by accident. So a text that is short, or that occurs in another one of the row,
is replaced by a marker of its own, and the row is rendered once more with the markers. Where a template refuses a
marker in place of such a text, it cannot be told whether it prints the text, which then counts as missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from trainer.data.examples.chat_template import ChatTemplate, TemplateRefusedError
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.printed_forms import printed_forms
from trainer.data.examples.rendered_text import RenderedText
from trainer.data.examples.row_texts import RowText, Scalar, collect_texts, replace_texts
from trainer.data.examples.turn_forms import render_messages
from trainer.data.rows import ChatRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import RowPart

UNAMBIGUOUS_CHARACTERS: Final = 16
"""A text of at least this length is not found by accident."""

_ANSWER: Final = frozenset({RowPart.CONTENT, RowPart.REASONING_CONTENT, RowPart.TOOL_CALLS})
"""What a turn of the assistant says."""


class UnrenderedError(DataError):
    """The chat template leaves out parts of a row.

    Args:
        row: the row.
        lost: the texts that are missing, in their order; at least one.
        variables: names of the variables that the template reads.
    """

    def __init__(
        self, row: ChatRow, lost: Sequence[RowText], variables: Collection[str] = ()
    ) -> None:
        self.parts = Counter(text.part.value for text in lost)
        names, counts = (
            ", ".join(self.parts),
            ", ".join(f"{count} {part}" for part, count in self.parts.items()),
        )
        hint = "a data.chat_template can print them"
        if RowPart.CONTENT not in self.parts:  # without it, what would be left to learn?
            hint = f"data.allow_unrendered: [{names}] trains without them; {hint}"
        if variables:
            hint += f"; or set data.chat_template_kwargs (the template reads {', '.join(sorted(variables))})"
        super().__init__(
            ErrorCode.DATASET_UNRENDERED,
            "the chat template does not print all of the row",
            file=row.file,
            row=row.index,
            field=lost[0].field,
            expected="every text of the row in its rendering",
            found=f"{len(lost)} missing ({counts})",
            hint=hint,
        )


def check_rendered(
    row: ChatRow,
    rendered: Sequence[RenderedText],
    tokenizer: ModelTokenizer,
    allowed: frozenset[RowPart],
) -> frozenset[RowPart]:
    """Returns the parts of a row that are missing from its texts, all of them `allowed`.

    Raises:
        DataError: another part is missing, or a turn would be trained on that says nothing.
    """
    texts = collect_texts(row)
    lost = _find_lost(row, rendered, texts, tokenizer.template)
    refused = [text for text in lost if text.part not in allowed]
    if refused:
        raise UnrenderedError(row, refused, tokenizer.template.variables)
    answered = Counter(text.message for text in texts if text.part in _ANSWER)
    answered.subtract(text.message for text in lost if text.part in _ANSWER)
    for text in rendered:
        for turn in text.turns or ():
            # White space and ends of turns alone say nothing.
            said = "".join(text.text[start:end] for start, end in turn.spans)
            for stop in tokenizer.stop_texts:
                said = said.replace(stop, "")
            if not answered[turn.number] or not said.strip():
                raise _says_nothing(row, turn.number)
    return frozenset(text.part for text in lost)


def _find_lost(
    row: ChatRow, rendered: Sequence[RenderedText], texts: Sequence[RowText], template: ChatTemplate
) -> list[RowText]:
    """Returns the texts of a row that its renderings lack.

    A rendering must contain every text of the messages that it covers. Reasoning needs to be in one of them only:
    the turn's own, since templates cut it for later turns, and the model then generates without it too.
    """
    missing = [_find_missing(row, one, texts, template) for one in rendered]
    if not any(missing):
        return []

    def is_lost(number: int, text: RowText) -> bool:
        found = [
            number not in lacks
            for one, lacks in zip(rendered, missing, strict=True)
            if text.message < one.count
        ]
        return (
            not any(found) if text.part is RowPart.REASONING_CONTENT and found else not all(found)
        )

    return [text for number, text in enumerate(texts) if is_lost(number, text)]


def _find_missing(
    row: ChatRow, rendered: RenderedText, texts: Sequence[RowText], template: ChatTemplate
) -> frozenset[int]:
    """Returns the indices of the texts that a rendering lacks, among those of its messages."""
    # The first ones: tools, then turn by turn.
    own = [text for text in texts if text.message < rendered.count]
    values = [text.value for text in own]
    markers = _mark_ambiguous(values)
    if markers == values:
        return _search(own, values, rendered.text)

    def render(chosen: Sequence[Scalar]) -> str | None:
        messages, tools = replace_texts(row, rendered.count, chosen)
        try:
            return render_messages(
                replace(row, messages=messages, tools=tools), rendered.form, template
            )
        except TemplateRefusedError:  # it demands a form that a marker lacks
            return None

    if (marked := render(markers)) is not None:
        return _search(own, markers, marked)
    # Those markers that it takes alone; then, if it refuses these together, none.
    taken = [
        value
        if value == marker or render([*values[:number], marker, *values[number + 1 :]]) is None
        else marker
        for number, (value, marker) in enumerate(zip(values, markers, strict=True))
    ]
    if (marked := render(taken)) is None:
        taken, marked = values, rendered.text
    unclear = frozenset(number for number, marker in enumerate(markers) if taken[number] != marker)
    return unclear | _search(own, taken, marked)


def _mark_ambiguous(values: Sequence[Scalar]) -> list[Scalar]:
    """Returns the values with a marker of its own for each that could be found by accident.

    All markers have the same length, so that none contains another. There is none for true, false and null.
    """
    everything = "\n".join(value for value in values if isinstance(value, str))

    def mark(number: int, value: Scalar) -> Scalar:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            is_clear = len(value) >= UNAMBIGUOUS_CHARACTERS and everything.count(value) == 1
            return value if is_clear else f"Zq{number:08d}x"
        return type(value)(730_000_000_000 + number)

    return [mark(number, value) for number, value in enumerate(values)]


def _search(texts: Sequence[RowText], values: Sequence[Scalar], rendering: str) -> frozenset[int]:
    """Returns the indices of the texts whose values are not found, each turn after the end of the one before.

    Values that have no marker and are equal need one occurrence each.
    """
    missing: set[int] = set()
    position = 0
    for turn, group in groupby(
        enumerate(texts), key=lambda item: None if item[1].moves else item[1].message
    ):
        start = 0 if turn is None else position
        ends: dict[Scalar, int] = {}
        for number, _ in group:
            value = values[number]
            # Where the first occurrence ends, in any of the forms in which templates print a value.
            for form in printed_forms(value):
                if (at := rendering.find(form, ends.get(value, start))) >= 0:
                    ends[value] = at + len(form)
                    break
            else:
                missing.add(number)
        if turn is not None:
            position = max(ends.values(), default=position)
    return frozenset(missing)


def _says_nothing(row: ChatRow, number: int) -> DataError:
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "the turn would be trained on, but says nothing before it ends",
        field=f"messages[{number}]",
        expected="content, reasoning or a call that the chat template has the assistant generate",
        found="none",
        hint="set train: false (or weight: 0) in this turn, or leave the row out",
    )
