"""What a chat template puts around an answer in the assistant's turn: the marks of a thought and of the answer.

The template itself shows them: a turn with a thought is rendered, and one without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trainer.data.examples.chat_template import ChatTemplate, TemplateRefusedError
from trainer.data.rows import Message

_QUESTION: Final = Message("user", "probe question")
_THOUGHT: Final = "probe thought"
_ANSWER: Final = "probe answer"


@dataclass(frozen=True)
class AnswerMarkers:
    """The marks, without the white space around them.

    Attributes:
        thought_start: what a thought begins with.
        thought_end: what stands between a thought and the answer.
        lead: what an answer without a thought begins with; mostly empty.
    """

    # Rows write reasoning inside a content with these tags, whatever the template makes of them.
    thought_start: str = "<think>"
    thought_end: str = "</think>"
    lead: str = ""

    def cut(self, said: str, prompt: str = "") -> str:
        """Returns the answer in what the assistant says, without thought, marks and white space around it.

        Args:
            said: the text of the turn after its prompt.
            prompt: the input that it was generated from; it may end within a thought.

        Returns:
            Empty if a thought has begun and not ended.
        """
        said = said.strip()
        if self.thought_end in said:
            return said.rpartition(self.thought_end)[2].strip()
        if said.startswith(self.thought_start) or prompt.rstrip().endswith(self.thought_start):
            return ""
        return said.removeprefix(self.lead).strip()


def find_answer_markers(template: ChatTemplate) -> AnswerMarkers:
    """Returns the marks of a template; those of `AnswerMarkers` where it prints no reasoning."""
    plain, reasoned = (
        Message("assistant", _ANSWER, reasoning_content=thought) for thought in (None, _THOUGHT)
    )
    try:
        prompt = template.render((_QUESTION,), prompt=True)
        lead = _between(template.render((_QUESTION, plain), prompt=False), prompt, _ANSWER)
        text = template.render((_QUESTION, reasoned), prompt=False)
    except TemplateRefusedError:
        return AnswerMarkers()
    start, end = _between(text, prompt, _THOUGHT), _between(text, _THOUGHT, _ANSWER)
    # Where the prompt itself opens the thought, nothing is left between the two.
    return AnswerMarkers(
        start or AnswerMarkers.thought_start, end or AnswerMarkers.thought_end, lead
    )


def _between(text: str, before: str, after: str) -> str:
    """Returns what is between two texts, stripped; empty if they do not occur in this order."""
    _, found, rest = text.partition(before)
    between, closed, _ = rest.partition(after)
    return between.strip() if found and closed else ""
