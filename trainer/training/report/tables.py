"""Tables of names and values: as HTML in the report, as Markdown in the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Final

_ACTIVE: Final = re.compile(r"[|<]|!(?=\[)|(?<=javascript):", re.IGNORECASE)
"""Characters that would end a cell, begin HTML or a picture, or make a link run a script."""


def render_table(title: str, values: Mapping[str, object]) -> str:
    """Renders a section of HTML with a heading and a table: floats with two decimals, texts escaped.

    Returns an empty text without values.
    """
    rows = []
    for name, value in values.items():
        if isinstance(value, float):
            cell = f"{value:,.2f}"
        else:
            cell = f"{value:,}" if isinstance(value, int) else escape(str(value))
        rows.append(f"<tr><th>{escape(name)}<td>{cell}")
    return (
        ""
        if not rows
        else f"<section><h2>{escape(title)}</h2><table>{''.join(rows)}</table></section>"
    )


def table_lines(values: Mapping[str, object]) -> Iterator[str]:
    """Yields the lines of a Markdown table without headings; values that are not texts are written as JSON."""
    yield from ("| | |", "|---|---|")
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        # Settings of the job spec may contain any text, and a result's model card may contain no active content.
        escaped = _ACTIVE.sub(_escape_character, text)
        yield f"| {name} | {escaped} |"


def _escape_character(match: re.Match[str]) -> str:
    return "\\|" if match[0] == "|" else f"&#{ord(match[0])};"
