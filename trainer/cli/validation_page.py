"""`validate --html`: the report as a page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Final

from trainer.cli.terminal_text import clean_text, show_control_characters
from trainer.cli.validation_output import ValidationReport, report_lines, split_by_mask

_PAGE_COLUMNS: Final = 100
_PAGE_STYLE: Final = (
    "body{font:14px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{white-space:pre-wrap;"
    "background:#f6f6f6;padding:1em}mark{background:#bfe8bf}.w{color:#8a5a00}"
)


def render_page_html(result: ValidationReport) -> str:
    """Returns the report as one HTML page, without scripts and without requests to anywhere."""
    lines = html.escape(clean_text("\n".join(report_lines(result, columns=_PAGE_COLUMNS))))
    warnings = "".join(
        f"<p class=w>{html.escape(clean_text(warning))}</p>" for warning in result.warnings
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>trainer validate</title>"
        f"<style>{_PAGE_STYLE}</style><h1>The dataset in the job</h1><pre>{lines}</pre>{warnings}"
        f"{_render_example(result)}</html>\n"
    )


def _render_example(result: ValidationReport) -> str:
    shown, tokens = result.found.shown, result.tokens
    if shown is None or tokens is None:
        return ""
    parts: list[str] = []
    for example in shown.examples:
        runs: Mapping[bool, str] = {True: "<mark>{}</mark>", False: "{}"}
        texts = (
            runs[trained].format(html.escape(show_control_characters(text)))
            for trained, text in split_by_mask(example, tokens)
        )
        parts.append(f"<pre>{''.join(texts)}</pre>")
    return f"<h2>Row {shown.row.index}: what is marked is trained on</h2>{''.join(parts)}"
