"""Secrets in buffers that are ours, so that they can be overwritten when done.

Python copies: `bytes` cannot be changed, and what a library was given is the library's. So this covers exactly
what lies in a `bytearray` of our own. SECURITY.md says what is left.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


def wipe(secret: bytearray) -> None:
    """Overwrite with zeros in place: by address, so that no other buffer takes the place of this one."""
    if secret:
        buffer = (ctypes.c_char * len(secret)).from_buffer(secret)
        ctypes.memset(ctypes.addressof(buffer), 0, len(secret))


@contextmanager
def wiped(secret: bytearray) -> Iterator[bytearray]:
    """The buffer, for the time of the context; zeros afterwards, also after an error."""
    try:
        yield secret
    finally:
        wipe(secret)
