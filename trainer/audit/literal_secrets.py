"""Secrets in a text that is public, and the forms in which a compose file names values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from trainer.audit.document import Document
from trainer.audit.findings import printable, shown
from trainer.audit.nodes import Node
from trainer.audit.secrets import WHOLLY_VARIABLE, argument_names, is_secret_name, masked

PAIRS: Final = ("environment", "args", "labels")
"""Keys whose value is a mapping, or a list of NAME=VALUE that means the same."""

_SCRIPTS: Final = ("pre_launch_script", "init_script", "bash_script")
_VARIABLE: Final = re.compile(r"\$(?:\$|\{?([A-Za-z_]\w*))")
_COMMANDS: Final = ("command", "entrypoint")
_HOOKS: Final = ("post_start", "pre_stop")


def pairs(node: Node) -> Iterator[tuple[str, Node]]:
    """Yields names and values, from either form; a name without a value has a node of no value."""
    yield from node.items()
    for element in () if node.is_mapping else node.elements():
        name, separator, value = element.text.partition("=")
        # A list may hold anything, such as a URL with a password, where only a name is expected.
        yield shown(name), Node(value if separator else None, element.line, element.path)


def _commands(service: Node) -> Iterator[Node]:
    """Yields everything in a service that is a command line."""
    for name in _COMMANDS:
        yield service.get(name)
    yield service.get("healthcheck").get("test")
    for name in _HOOKS:
        for hook in service.get(name).elements():
            yield hook.get("command")


def _named_values(document: Document) -> Iterator[tuple[str, Node]]:
    for service in document.services():
        for holder in (
            service.get("environment"),
            service.get("build").get("args"),
            service.get("labels"),
        ):
            yield from pairs(holder)
        for command in _commands(service):
            arguments = [*command.elements()]
            yield from zip(
                argument_names([each.text for each in arguments]), arguments, strict=True
            )
        yield from service.get("logging").get("options").items()
    if document.app is not None:
        # `token_key` is the name of a variable that is sent encrypted, not a token.
        yield from (
            (name, node)
            for name, node in document.app.get("docker_config").items()
            if name != "token_key"
        )
        yield from (("", each) for name in _SCRIPTS for each in document.app.get(name).elements())


def literal_secrets(document: Document) -> Iterator[tuple[Node, str]]:
    """Yields where a secret is in a text that is public, and in words; values are never shown."""
    for name, node in _named_values(document):
        literal = node.text.strip() and not WHOLLY_VARIABLE.fullmatch(node.text.strip())
        if literal and (is_secret_name(name) or masked(node.text) != node.text):
            where = printable(name) or "this text"
            yield node, f"{where} holds a literal secret, and all of this is public"


def variables(text: str) -> tuple[str, ...]:
    """Returns the names that compose replaces in `text`, each once; `$$` is a dollar sign."""
    return tuple(dict.fromkeys(match[1] for match in _VARIABLE.finditer(text) if match[1]))
