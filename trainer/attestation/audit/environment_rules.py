"""Rules on values that do not come from the measured text, and on secrets that stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from trainer.attestation.audit.document import Document
from trainer.attestation.audit.findings import has_url_password, is_secret_name, printable, shown
from trainer.attestation.audit.nodes import Node
from trainer.attestation.audit.service_rules import Hits

PAIRS: Final = ("environment", "args", "labels")
"""Keys whose value is a mapping, or a list of NAME=VALUE that means the same."""

_SECTIONS: Final = ("services", "volumes", "configs", "secrets", "networks")
_VARIABLE: Final = re.compile(r"\$(?:\$|\{?([A-Za-z_]\w*))")
_WHOLLY_VARIABLE: Final = re.compile(r"\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*(?::?\?[^}]*)?\}")


def pairs(node: Node) -> Iterator[tuple[str, Node]]:
    """Names and values, from either form; a name without a value has a node of no value."""
    yield from node.items()
    for element in () if node.is_mapping else node.elements():
        name, separator, value = element.text.partition("=")
        # A list may hold anything, such as a URL with a password, where only a name is expected.
        yield shown(name), Node(value if separator else None, element.line, element.path)


def _named_values(document: Document) -> Iterator[tuple[str, Node]]:
    for service in document.services():
        for holder in (service.get("environment"), service.get("build").get("args"), service.get("labels")):
            yield from pairs(holder)
    if document.app is not None:
        yield from pairs(document.app.get("docker_config"))


def literal_secret(document: Document) -> Hits:
    """Secrets in a text that is public. Their values are never shown."""
    for name, node in _named_values(document):
        literal = node.text.strip() and not _WHOLLY_VARIABLE.fullmatch(node.text.strip())
        if literal and (is_secret_name(name) or has_url_password(node.text)):
            yield node, f"{printable(name)} holds a literal value, and this text is public"


def variables(text: str) -> tuple[str, ...]:
    """Names that compose replaces in `text`, each once; `$$` is a dollar sign."""
    return tuple(dict.fromkeys(match[1] for match in _VARIABLE.finditer(text) if match[1]))


def interpolated(document: Document) -> Hits:
    """Values that are filled in after the text was measured."""
    for section in _SECTIONS:
        for node in document.compose.get(section).scalars():
            if names := variables(node.text):
                yield node, f"filled in from {', '.join(names)} when it starts; not in the measured text"
    for service in document.services():
        for name, node in pairs(service.get("environment")):
            if node.value is None:
                yield node, f"{printable(name)} is passed through from outside; not in the measured text"


def env_file(document: Document) -> Hits:
    """Environment from a file that is not in the measured text."""
    for service in document.services():
        if (node := service.get("env_file")).value is not None:
            yield node, "the environment comes from a file that is not in the measured text"
