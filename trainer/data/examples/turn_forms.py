"""Ways to render a turn whose plain rendering does not begin with the input from which the model generates it.

- Moved system: some templates (that of Mistral 7B v0.3) print the system text in the last user turn, and only
  while no answer follows it. The model is then given the same text if the row has it in the user turn itself.
- Opened thought: the templates of some reasoning models (DeepSeek R1, QwQ) end the generation prompt with
  `<think>` and a line end, and print the turns of a conversation without their thoughts. The model generates the
  thought, its end, and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Final

from trainer.data.examples.chat_template import ChatTemplate, TemplateRefusedError
from trainer.data.rows import ChatRow, Message

OPENED_THOUGHT: Final = "<think>\n"
_CLOSED_THOUGHT: Final = "\n</think>\n\n"
_ANSWER: Final = "probe answer"


class TurnForm(Enum):
    """How the messages up to a turn are rendered."""

    PLAIN = auto()
    MOVED_SYSTEM = auto()
    OPENED_THOUGHT = auto()


def render_prompt(row: ChatRow, form: TurnForm, template: ChatTemplate) -> str:
    """Renders the input from which the last message of a row is generated.

    Raises:
        TemplateRefusedError: the template refuses the messages.
    """
    messages = move_system(row.messages) if form is TurnForm.MOVED_SYSTEM else row.messages
    return template.render(
        messages[:-1], prompt=True, tools=row.tools, arguments=row.template_arguments
    )


def render_messages(row: ChatRow, form: TurnForm, template: ChatTemplate) -> str:
    """Renders all messages of a row.

    Raises:
        TemplateRefusedError: the template refuses the messages, or they have no such form.
    """
    if form is TurnForm.OPENED_THOUGHT:
        return _render_opened_thought(row, template)
    messages = move_system(row.messages) if form is TurnForm.MOVED_SYSTEM else row.messages
    return template.render(
        messages, prompt=False, tools=row.tools, arguments=row.template_arguments
    )


def move_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Returns the messages with the text of the system before that of the last user turn."""
    first, *turns = messages
    last_user = max(
        (index for index, turn in enumerate(turns) if turn.role == "user"), default=None
    )
    if first.role != "system" or last_user is None:
        return tuple(messages)
    turns[last_user] = replace(
        turns[last_user], content=f"{first.content}\n\n{turns[last_user].content}"
    )
    return tuple(turns)


def _render_opened_thought(row: ChatRow, template: ChatTemplate) -> str:
    """Renders the input of the last turn, the turn as the model generates it, and its end."""
    *before, turn = row.messages
    said = turn.content
    if turn.reasoning_content:
        said = f"{OPENED_THOUGHT}{turn.reasoning_content}{_CLOSED_THOUGHT}{turn.content}"
    prompt = render_prompt(row, TurnForm.OPENED_THOUGHT, template)
    if not (
        prompt.endswith(OPENED_THOUGHT) and said.startswith(OPENED_THOUGHT) and "</think>" in said
    ):
        raise TemplateRefusedError
    # The template itself shows how it ends a turn: what it prints after an answer without a thought.
    probe = replace(row, messages=(*before, replace(turn, content=_ANSWER, reasoning_content=None)))
    start = prompt.removesuffix(OPENED_THOUGHT)
    head, answer, end = render_messages(probe, TurnForm.PLAIN, template).partition(start + _ANSWER)
    if head or not answer:
        raise TemplateRefusedError
    return start + said + end
