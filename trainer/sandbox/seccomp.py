"""Installs a seccomp filter (seccomp(2), Documentation/userspace-api/seccomp_filter.rst)."""

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
    """Installs the filter in every thread, irrevocably. Needs no-new-privileges.

    Raises:
        OSError: the kernel has no seccomp filters, or the architecture is not x86-64.
    """
    code = program(wanted)
    buffer = ctypes.create_string_buffer(code, len(code))
    descriptor = _Program(len(code) // _INSTRUCTION_BYTES, ctypes.addressof(buffer))
    # All threads (TSYNC): a thread of an imported library would otherwise run without the filter.
    syscall("seccomp", _SET_MODE_FILTER, _ALL_THREADS, ctypes.addressof(descriptor))
