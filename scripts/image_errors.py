"""What can go wrong in scripts/image."""

from __future__ import annotations


class ImageError(Exception):
    """The image cannot be built.

    Attributes:
        hint: what to do about it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
