"""The compose text, `app-compose.json`: it names what runs in the VM, and the OS measures its exact bytes."""

from __future__ import annotations

from trainer.encoding import sha256_hex


def compose_hash(app_compose: str) -> str:
    """Returns the SHA-256 of the text in hex. The OS hashes bytes, so the JSON in it is not normalised."""
    return sha256_hex(app_compose.encode())
