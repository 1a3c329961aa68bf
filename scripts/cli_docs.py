"""Write docs/cli.md: the help of every `trainer` command, as the command prints it.

Usage: python scripts/cli_docs.py [--check]
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from trainer.cli.app import app
from trainer.cli.exit_codes import EXIT_CODES

PAGE: Final = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH: Final = 100
INTRODUCTION: Final = """\
# Commands

Written by `scripts/cli_docs.py` from the commands' own help; `scripts/check` compares them.

## Exit codes

| code | meaning |
|---|---|
{codes}

## Shell completion

`trainer --install-completion` installs completion of commands and options for the shell that it is called from
(bash, zsh, fish, PowerShell), in the shell's start-up file; `trainer --show-completion` prints the script instead.
"""


def render() -> str:
    """Return the text of the page."""
    command = typer.main.get_command(app)
    sections = (f"## {name}\n\n```text\n{text}\n```\n" for name, text in helps(command, "trainer"))
    codes = "\n".join(f"| {int(code)} | {meaning} |" for code, meaning in EXIT_CODES.items())
    return "\n".join([INTRODUCTION.format(codes=codes), *sections])


def helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help of `command` and its subcommands, in the order in which help lists them."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = command.context_class(command, info_name=name, parent=parent, **settings)
    yield context.command_path, _trimmed(command.get_help(context))
    if hasattr(command, "list_commands"):
        for below in command.list_commands(context):
            yield from helps(command.get_command(context, below), below, context)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def difference(found: str, expected: str) -> str:
    """Return a unified diff from the present page to the expected one; empty if they are equal."""
    before, after = found.splitlines(keepends=True), expected.splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, "docs/cli.md", "trainer --help"))


def main(arguments: list[str]) -> int:
    """Write the page, or compare it under `--check`; returns 1 if it differs."""
    parser = argparse.ArgumentParser(description="Write docs/cli.md from the commands' help.")
    parser.add_argument(
        "--check", action="store_true", help="compare only; 1 if the page is out of date"
    )
    options = parser.parse_args(arguments)
    page = render()
    if not options.check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if changes := difference(found, page):
        sys.stderr.write(
            f"{changes}docs/cli.md is out of date; hint: .venv/bin/python scripts/cli_docs.py\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
