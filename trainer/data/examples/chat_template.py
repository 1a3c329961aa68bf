"""Chat templates: Jinja text of the base model that renders a conversation.

Source: chat templating in the documentation of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from trainer.data.examples.jinja_environment import (
    CLOSE_MARK,
    OPEN_MARK,
    make_environment,
    naming_syntax_errors,
)
from trainer.data.examples.template_turns import (
    PROBE_CALL,
    PROBE_TOOLS,
    as_turns,
    prints_probe_call,
    read_keys,
    read_variables,
)
from trainer.data.rows import ChatRow, Message, is_encodable
from trainer.errors import ErrorCode, JobError, UsageError
from trainer.spec import TemplateArgument, is_set_by_renderer

if TYPE_CHECKING:
    from jinja2 import Template, nodes

_MARKER: Final = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

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
        arguments: further variables by name, for all rows (`data.chat_template_kwargs`).
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        now: datetime,
        arguments: Mapping[str, TemplateArgument] = MappingProxyType({}),
    ) -> None:
        self._sources = {
            name: text for name, text in sources.items() if name in ("default", "tool_use")
        }
        self._special_tokens = dict(special_tokens)
        self._now = now
        self._arguments = dict(arguments)
        self._compiled: dict[tuple[str, bool], Template] = {}
        self._takes_text: dict[str, bool] = {}

    @cached_property
    def marks_generation(self) -> bool:
        """Whether the template marks which parts the assistant generates."""
        return all(_MARKER.search(source) for source in self._sources.values())

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables that the template reads, without those that this class sets."""
        read = frozenset[str]().union(*map(read_variables, self._parsed))
        return frozenset(
            name for name in read - self._special_tokens.keys() if not is_set_by_renderer(name)
        )

    def unread(self, arguments: Mapping[str, TemplateArgument]) -> list[str]:
        """Returns the names of arguments that the template never reads, sorted."""
        return sorted(arguments.keys() - self.variables) if arguments else []

    @cached_property
    def _reasoning_key(self) -> str:
        """Name of the key of a message in which the template expects the assistant's reasoning."""
        read = frozenset[str]().union(*map(read_keys, self._parsed))
        return (
            "thinking"
            if "thinking" in read and "reasoning_content" not in read
            else "reasoning_content"
        )

    @cached_property
    def _parsed(self) -> tuple[nodes.Template, ...]:
        """The syntax trees.

        Raises:
            JobError: `MODEL_INVALID`: a template is not Jinja text.
            TemplateRefusedError: a template is nested too deeply.
        """
        with suppress(RecursionError), naming_syntax_errors():
            return tuple(
                make_environment(self._now, marked=False).parse(text)
                for text in self._sources.values()
            )
        raise TemplateRefusedError

    def render(
        self,
        messages: Sequence[Message],
        *,
        prompt: bool,
        tools: Sequence[Mapping[str, object]] | None = None,
        arguments: Mapping[str, TemplateArgument] = MappingProxyType({}),
        marked: bool = False,
    ) -> str:
        """Renders a conversation.

        Args:
            messages: its turns.
            prompt: whether the start of an assistant's turn is appended, as for generation.
            tools: schemas of the functions that may be called.
            arguments: the row's variables by name; they replace those of all rows.
            marked: whether noncharacters mark the ends of generation blocks.

        Raises:
            TemplateRefusedError: the template failed, or refuses these messages.
            JobError: `MODEL_INVALID`: it is no Jinja text.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        as_text = any(message.tool_calls for message in messages) and self._takes_calls_as_text(
            name
        )
        turns = as_turns(messages, reasoning_key=self._reasoning_key, calls_as_text=as_text)
        variables = {
            "tools": None if tools is None else list(tools),
            **self._arguments,
            **arguments,
        }
        return self._render_turns((name, marked), turns, prompt=prompt, variables=variables)

    def _render_turns(
        self,
        key: tuple[str, bool],
        turns: list[dict[str, Any]],
        *,
        prompt: bool,
        variables: Mapping[str, object],
    ) -> str:
        name, marked = key
        try:
            if key not in self._compiled:
                with naming_syntax_errors():
                    compiled = make_environment(self._now, marked=marked).from_string(
                        self._sources[name]
                    )
                # Each rendering copies them: of Jinja's chain of two dictionaries that takes a third of its time.
                compiled.globals = dict(compiled.globals)
                self._compiled[key] = compiled
            text = self._compiled[key].render(
                messages=turns,
                documents=None,
                add_generation_prompt=prompt,
                **self._special_tokens,
                **variables,
            )
        except JobError:
            raise
        except Exception:  # noqa: BLE001 -- a template may raise anything, with the row's text in it
            text = None
        if text is None or len(text) > MAX_RENDERED or not is_encodable(text):
            raise TemplateRefusedError
        return text

    def _takes_calls_as_text(self, name: str) -> bool:
        """Returns whether a template prints the arguments of a call as JSON only if it is given them as text.

        Found out once for each template, by rendering a call. Most templates serialise an object, or print it
        argument by argument. Some print what they are given: an object would become Python's notation.
        """
        if name not in self._takes_text:
            forms = (
                as_text for as_text in (False, True) if self._prints_calls(name, as_text=as_text)
            )
            self._takes_text[name] = next(forms, False)
        return self._takes_text[name]

    def _prints_calls(self, name: str, *, as_text: bool) -> bool:
        turns = as_turns(PROBE_CALL, reasoning_key=self._reasoning_key, calls_as_text=as_text)
        variables = {"tools": list(PROBE_TOOLS), **self._arguments}
        try:
            return prints_probe_call(
                self._render_turns((name, False), turns, prompt=False, variables=variables)
            )
        except TemplateRefusedError:
            return False

    def render_marked(self, row: ChatRow) -> tuple[str, list[CharacterSpan]]:
        """Renders a complete row and returns the text and the spans inside generation blocks.

        Raises:
            TemplateRefusedError: the template failed, or the row contains the noncharacters that serve as marks.
            JobError: `MODEL_INVALID`: it is no Jinja text.
        """
        # A row with these characters could place the marks itself, and so choose what is trained on.
        turns = as_turns(row.messages, reasoning_key=self._reasoning_key, calls_as_text=False)
        texts = _texts_in([*turns, *(row.tools or ()), row.template_arguments])
        if any(mark in text for text in texts for mark in (OPEN_MARK, CLOSE_MARK)):
            raise TemplateRefusedError
        text = self.render(
            row.messages,
            prompt=False,
            tools=row.tools,
            arguments=row.template_arguments,
            marked=True,
        )
        return _spans(text)


def require_read(template: ChatTemplate | None, arguments: Mapping[str, TemplateArgument]) -> None:
    """Requires that a template reads every variable that the job sets: another name would have no effect.

    Raises:
        UsageError: `SPEC_INVALID`: it does not, or there is no template.
    """
    unread = sorted(arguments) if template is None else template.unread(arguments)
    if unread:
        read = () if template is None else sorted(template.variables)
        raise UsageError(
            ErrorCode.SPEC_INVALID,
            "job spec: data.chat_template_kwargs",
            expected=f"variables that the chat template reads: {', '.join(read) or 'none'}",
            found=", ".join(unread),
        )


def _texts_in(value: object) -> Iterator[str]:
    """Yields every text inside a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (key, *_texts_in(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)


def _spans(marked: str) -> tuple[str, list[CharacterSpan]]:
    """Removes the marks and returns the text and the non-empty spans between them."""
    parts: list[str] = []
    spans: list[CharacterSpan] = []
    length = opened = 0
    # The capturing group keeps the marks among the parts; `length` counts the characters without them.
    for part in re.split(f"([{OPEN_MARK}{CLOSE_MARK}])", marked):
        if part == OPEN_MARK:
            opened = length
        elif part == CLOSE_MARK:
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
        pairs = (
            (item.get("name"), item.get("template")) for item in value if isinstance(item, dict)
        )
        return {
            name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)
        }
    return {}
