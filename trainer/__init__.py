"""Confidential fine-tuning: verify a TEE, seal data to it, train a LoRA adapter inside, pull checked weights."""

from typing import Final

__version__: Final = "0.1.0"
