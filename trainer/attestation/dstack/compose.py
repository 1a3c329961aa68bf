"""The compose file: what runs in the VM, measured by the exact bytes of its text."""

from __future__ import annotations

from trainer.encoding import sha256_hex


def compose_hash(app_compose: str) -> str:
    """SHA-256 of the text as the VM got it, in hex. No JSON normalisation: the OS hashes bytes, not values."""
    return sha256_hex(app_compose.encode())
