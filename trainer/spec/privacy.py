"""Section `privacy`: privacy of the weights themselves."""

from __future__ import annotations

from trainer.models import Strict


class PrivacySection(Strict):
    """Privacy of the weights themselves. No mechanism is offered yet, so every key is refused."""
