"""The console of rich that no text can command; a module of its own because `--help` needs no rich."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from trainer.cli.terminal_text import clean_text

_LEAST_TEXT_COLUMNS: Final = 20
"""Columns that a text gets beside its indentation, however narrow the terminal is."""


class SafeConsole(Console):
    """A console of rich on which no text can command the terminal: only rich's own styles do.

    Args:
        options: those of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        # Without this, rich shows `:key:` in a name of a file as a picture, even where it reads no markup.
        super().__init__(emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Renders as rich does, with the text of each segment cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean_text(segment.text))

    def print_wrapped(self, text: str, *, indent: int = 0, style: str = "") -> None:
        """Prints a text in lines that fit the terminal; elsewhere as one line, which scripts can search.

        Args:
            text: one line.
            indent: column at which continued lines begin.
            style: rich's style of the text.
        """
        # Escapes are longer than what they replace, so the text is cleaned before it is measured.
        line = Text(clean_text(text), style=style)
        if not self.is_terminal:
            self.print(line, soft_wrap=True)
            return
        head, body = line[:indent], line[indent:]
        for piece in body.wrap(self, max(_LEAST_TEXT_COLUMNS, self.width - indent)):
            piece.rstrip()
            self.print(Text.assemble(head, piece), soft_wrap=True)
            head = Text(" " * indent)
