"""Putting a seccomp filter in force (seccomp(2), Documentation/userspace-api/seccomp_filter.rst)."""

from __future__ import annotations

import ctypes
from typing import Final

from trainer.sandbox.filters import Filter, program
from trainer.sandbox.syscalls import syscall

_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_INSTRUCTION_BYTES: Final = 8


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(wanted: Filter) -> None:
    """Refuse from now on, in every thread, what the filter refuses. Needs no-new-privileges; cannot be undone.

    Raises:
        OSError: the kernel has no seccomp filters, or the architecture is not x86-64.
    """
    code = program(wanted)
    held = ctypes.create_string_buffer(code, len(code))
    described = _Program(len(code) // _INSTRUCTION_BYTES, ctypes.addressof(held))
    syscall("seccomp", _SET_MODE_FILTER, _ALL_THREADS, ctypes.addressof(described))
