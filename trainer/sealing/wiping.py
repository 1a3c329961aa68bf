"""Secrets in our own buffers, which are overwritten after use.

Python copies: `bytes` are immutable, and a library keeps its own copy of a key that it was given. So this covers
only secrets in a `bytearray` of this project. docs/threat-model.md lists what is not overwritten.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


def wipe(secret: bytearray) -> None:
    """Overwrites a buffer with zeros in place.

    The write goes to the buffer's address: slice assignment may allocate a new buffer and free the old one
    unchanged.
    """
    if secret:
        buffer = (ctypes.c_char * len(secret)).from_buffer(secret)
        ctypes.memset(ctypes.addressof(buffer), 0, len(secret))


@contextmanager
def wiped(secret: bytearray) -> Iterator[bytearray]:
    """Yields the buffer and overwrites it when the context ends, also after an error."""
    try:
        yield secret
    finally:
        wipe(secret)
