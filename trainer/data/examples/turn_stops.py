"""Turns that the template of a model does not end.

Some templates write no end of a turn. The model ends its turn by generating the token with which the next one
begins (`<|user|>`, or `<|observation|>` after a call), which its configuration lists among the tokens that stop
generation.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer.data.examples.chat_template import ChatTemplate, TemplateRefusedError
from trainer.data.examples.template_turns import PROBE_CALL
from trainer.data.rows import Message


class NextTurnStops:
    """Finds the stop token with which the turn after one of the assistant begins.

    Args:
        template: the chat template.
        stop_texts: texts of the tokens at which generation ends.
    """

    def __init__(self, template: ChatTemplate, stop_texts: Iterable[str]) -> None:
        self._template = template
        # Of two tokens with a common beginning the longer one is tried first.
        self._texts = tuple(sorted(stop_texts, key=len, reverse=True))
        self._found: dict[str, str] = {}

    def find(self, role: str) -> str:
        """Returns the text of the stop token with which a turn of `role` begins; empty if turns end themselves."""
        if role not in self._found:
            self._found[role] = self._render_probe(role)
        return self._found[role]

    def _render_probe(self, role: str) -> str:
        question, call = PROBE_CALL
        turns = question, call if role == "tool" else Message("assistant", "probe answer")
        try:
            before = self._template.render(turns, prompt=False)
            after = self._template.render((*turns, Message(role, "probe")), prompt=False)
        except TemplateRefusedError:
            return ""
        if not after.startswith(before) or before.rstrip().endswith(self._texts):
            return ""
        return next((text for text in self._texts if after.startswith(text, len(before))), "")
