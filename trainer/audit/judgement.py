"""The findings of a review: deviations with their reasons, literal secrets, notes on what a deployment chose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from trainer.attestation.dstack.key_source import (
    MACHINE_PROVIDER,
    NO_CLEAN_START,
    OPEN_PROVIDER,
    UNNAMED_SERVICE,
    KeyWeakness,
    key_weaknesses,
    read_key_source,
)
from trainer.audit.document import EMBEDDED, Document
from trainer.audit.findings import Finding, Severity, printable, shown
from trainer.audit.literal_secrets import literal_secrets
from trainer.audit.nodes import Node
from trainer.audit.reasons import reason_for
from trainer.audit.shape import Deviation, deviations
from trainer.audit.variations import VARIATIONS

_SECRET_HINT: Final = "take it out and replace it: it is no secret any more"  # noqa: S105 -- a hint


_KEY_PLACES: Final[Mapping[KeyWeakness, str]] = {
    OPEN_PROVIDER: "key_provider",
    MACHINE_PROVIDER: "key_provider",
    UNNAMED_SERVICE: "key_provider_id",
    NO_CLEAN_START: "init_script",
}


def findings(document: Document) -> tuple[Finding, ...]:
    """Returns everything that a reviewer should know, worst first, then in the order of the text."""
    app = document.app
    weaknesses: dict[str, KeyWeakness] = {}
    if app is not None:
        source = read_key_source({key: node.plain_value() for key, node in app.items()})
        weaknesses = {_KEY_PLACES[weakness]: weakness for weakness in key_weaknesses(source)}
    found = [
        _finding(deviation, weaknesses.pop(deviation.place, None))
        for deviation in deviations(document)
    ]
    if app is not None:
        for place, weakness in weaknesses.items():
            found.append(
                _at_node(
                    Severity.HIGH, weakness.code, app.get(place), weakness.reason, weakness.hint
                )
            )
    for node, message in literal_secrets(document):
        found.append(_at_node(Severity.HIGH, "literal-secret", node, message, _SECRET_HINT))
    found += _notes(document)
    return tuple(
        sorted(found, key=lambda each: (each.severity.rank, each.line, each.path, each.code))
    )


def _finding(deviation: Deviation, weakness: KeyWeakness | None) -> Finding:
    reason = reason_for(deviation)
    code, because, hint = (
        (reason.code, reason.because, reason.hint)
        if weakness is None
        else (weakness.code, weakness.reason, weakness.hint)
    )
    message = f"expected {deviation.expected}, got {deviation.found}, because {because}"
    return _at_node(reason.severity, code, deviation.node, message, hint)


def _at_node(severity: Severity, code: str, node: Node, message: str, hint: str) -> Finding:
    return Finding(severity, code, node.line, printable(node.path), message, hint)


def _notes(document: Document) -> Iterator[Finding]:
    """Yields what a reviewer should know about values that are within their grammar."""
    for variation in VARIATIONS.values():
        node = _at(document, variation.place)
        if node is None or variation.accepts is None or not variation.accepts(node, document):
            continue
        for note in variation.notes:
            if note.holds(node):
                yield _at_node(
                    Severity.INFO, note.code, node, note.message.format(shown(node.text)), note.hint
                )


def _at(document: Document, place: str) -> Node | None:
    """Returns what a document has at a place of `VARIATIONS`, or None."""
    node: Node | None = document.compose if place.startswith(f"{EMBEDDED}.") else document.app
    for key in place.removeprefix(f"{EMBEDDED}.").replace("[", ".[").split("."):
        if node is None:
            return None
        if key.startswith("["):
            elements, index = node.value, int(key[1:-1])
            node = (
                elements[index] if isinstance(elements, tuple) and index < len(elements) else None
            )
        else:
            node = node.get(key) if node.get(key).value is not None else None
    return node
