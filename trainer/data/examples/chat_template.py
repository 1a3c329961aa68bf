"""Chat templates: Jinja text of the base model that renders a conversation.

A template is untrusted code. It runs in Jinja's sandbox for immutable values, which gives no access to attributes
that lead out of the sandbox and no way to change the arguments. As with `transformers`, a template can use
`raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, `break`, `continue` and `{% generation
%}`.

Source: chat templating in the documentation of transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from trainer.data.rows import ChatRow, Message, is_encodable

if TYPE_CHECKING:
    from jinja2 import Template

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, which are reserved for internal use: they mark the ends of a generation block."""

_MARKER: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")

MAX_RENDERED: Final = 1 << 28
"""Longest acceptable rendering, in characters."""

CharacterSpan = tuple[int, int]
"""Start and end of a part of a text, in characters."""


class TemplateRefusedError(Exception):
    """The chat template cannot render these messages. It has no text: templates quote what they refuse."""


class ChatTemplate:
    """A base model's chat template.

    Args:
        sources: name → Jinja text; one is called `default`, one for rows with tools may be called `tool_use`.
        special_tokens: names such as `bos_token` → their text; templates see them as variables.
        now: the time that `strftime_now` formats, the same for all rows.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str], *, now: datetime) -> None:
        self._sources = {name: text for name, text in sources.items() if name in ("default", "tool_use")}
        self._special_tokens = dict(special_tokens)
        self._now = now
        self._compiled: dict[tuple[str, bool], Template] = {}

    @cached_property
    def marks_generation(self) -> bool:
        """Whether the template marks which parts the assistant generates."""
        return all(_MARKER.search(source) for source in self._sources.values())

    def render(
        self,
        messages: Sequence[Message],
        *,
        prompt: bool,
        tools: Sequence[Mapping[str, object]] | None = None,
        marked: bool = False,
    ) -> str:
        """Renders a conversation.

        Args:
            messages: its turns.
            prompt: whether the start of an assistant's turn is appended, as for generation.
            tools: schemas of the functions that may be called.
            marked: whether noncharacters mark the ends of generation blocks.

        Raises:
            TemplateRefusedError: the template failed, or refuses these messages.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        key = (name, marked)
        try:
            if key not in self._compiled:
                self._compiled[key] = _environment(self._now, marked=marked).from_string(self._sources[name])
            text = self._compiled[key].render(
                messages=[as_turn(message) for message in messages],
                tools=None if tools is None else list(tools),
                documents=None,
                add_generation_prompt=prompt,
                **self._special_tokens,
            )
        except Exception:  # noqa: BLE001 -- a template may raise anything, with the row's text in it
            text = None
        if text is None or len(text) > MAX_RENDERED or not is_encodable(text):
            raise TemplateRefusedError
        return text

    def render_marked(self, row: ChatRow) -> tuple[str, list[CharacterSpan]]:
        """Renders a complete row and returns the text and the spans inside generation blocks.

        Raises:
            TemplateRefusedError: the template failed, or the row contains the noncharacters that serve as marks.
        """
        # A row with these characters could place the marks itself, and so choose what is trained on.
        if any(mark in text for text in row.texts for mark in (_OPEN, _CLOSE)):
            raise TemplateRefusedError
        return _spans(self.render(row.messages, prompt=False, tools=row.tools, marked=True))


def as_turn(message: Message) -> dict[str, Any]:
    """Returns a message as templates expect it, without the keys that have no value."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
                **({} if call.id is None else {"id": call.id}),
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _environment(now: datetime, *, marked: bool) -> Any:
    from jinja2 import nodes  # noqa: PLC0415 -- part of an extra
    from jinja2.exceptions import TemplateError  # noqa: PLC0415
    from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}`: its content, between marks if `marked` is set."""

        tags = {"generation"}  # noqa: RUF012 -- Jinja's interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Any) -> str:
            return f"{_OPEN}{caller()}{_CLOSE}" if marked else str(caller())

    def raise_exception(_message: object) -> None:
        raise TemplateError

    # trim_blocks and lstrip_blocks as in transformers: templates are written for this treatment of white space.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _spans(marked: str) -> tuple[str, list[CharacterSpan]]:
    """Removes the marks and returns the text and the non-empty spans between them."""
    parts: list[str] = []
    spans: list[CharacterSpan] = []
    length = opened = 0
    # The capturing group keeps the marks among the parts; `length` counts the characters without them.
    for part in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if part == _OPEN:
            opened = length
        elif part == _CLOSE:
            spans.append((opened, length))
        else:
            parts.append(part)
            length += len(part)
    return "".join(parts), [span for span in spans if span[0] < span[1]]


def named_templates(value: object, files: Mapping[str, str]) -> dict[str, str]:
    """Returns the templates of a model by name; template files replace those of tokenizer_config.json.

    Args:
        value: `chat_template` of tokenizer_config.json: text, a list of objects with name and template, or None.
        files: name → text of the templates that are files of their own; `chat_template.jinja` is the default.
    """
    if files:
        return dict(files)
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        pairs = ((item.get("name"), item.get("template")) for item in value if isinstance(item, dict))
        return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    return {}
