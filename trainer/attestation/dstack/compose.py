"""The compose text, `app-compose.json`: it names what runs in the VM, and the OS measures its exact bytes."""

from __future__ import annotations

from trainer.encoding import parse_json, sha256_hex


def compose_hash(app_compose: str) -> str:
    """Returns the SHA-256 of the text in hex. The OS hashes bytes, so the JSON in it is not normalised."""
    return sha256_hex(app_compose.encode())


def parse_app_compose(app_compose: str) -> dict[str, object]:
    """Parses the text.

    Raises:
        ValueError: not a JSON object.
    """
    document = parse_json(app_compose)
    if not isinstance(document, dict):
        raise ValueError(f"not a JSON object but {type(document).__name__}")  # noqa: TRY004 -- wrong content
    return document
