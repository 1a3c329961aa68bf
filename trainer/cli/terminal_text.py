"""Texts that cannot command a terminal."""

from __future__ import annotations

import unicodedata


def clean_text(text: str) -> str:
    """Returns `text` with every character that could command a terminal as a visible escape, except line ends."""
    from trainer.encoding import printable

    return "\n".join(map(printable, text.split("\n")))


def show_control_characters(text: str) -> str:
    """Returns the text with symbols in place of control characters: data must not control a terminal."""
    shown: list[str] = []
    for character in text:
        # Cc: control characters; Cf: format characters, among them those that reverse the direction of writing.
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf"):
            shown.append(character)
        else:
            # The block Control Pictures has the symbols of the codes 0 to 31 in their order, from U+2400 on.
            shown.append(chr(0x2400 + ord(character)) if character < " " else "␡")
    return "".join(shown)
