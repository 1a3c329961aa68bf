"""What the attacks have in common: what there is to attack, and how a system call is tried."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.sandbox import landlock
from trainer.sandbox.syscalls import NUMBERS, prctl, syscall


@dataclass(frozen=True)
class Targets:
    """What there is to attack; everything here exists and listens."""

    supervisor: int
    init: int
    """A process that was started before all others and knows the operator's token."""
    agent: str
    tcp_port: int
    udp_port: int
    workspace: str
    own: str
    other: str
    ciphertext: str
    open_folder: str
    """A directory that everybody may write to, with a file `world-readable` in it."""


Attack = Callable[[Targets], object]


def pretend_there_is_no_landlock() -> None:
    """Answers its system calls as a kernel does that was built without it, to this process and its children."""
    equal, answer, allow = 0x15, 0x06, 0x7FFF0000
    lines = [(0x20, 0, 0, 0)]
    for name in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
        lines += [(equal, 0, 1, NUMBERS[name]), (answer, 0, 0, 0x00050000 | errno.ENOSYS)]
    code = b"".join(struct.pack("=HBBI", *line) for line in [*lines, (answer, 0, 0, allow)])
    buffer = ctypes.create_string_buffer(code, len(code))
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS, which an ordinary user needs for a filter
    syscall("seccomp", 1, 0, struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)))
    assert landlock.abi() == 0


def open_path(path: str | Path, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags | os.O_CLOEXEC, 0o600))


def raw(name: str, *arguments: int | bytes | None) -> Attack:
    """A call with arguments that an unconfined, privileged process gets EINVAL, EFAULT, EBADF or 0 for."""

    def attempt(_: Targets) -> None:
        try:
            syscall(name, *arguments)
        except OSError as error:
            if error.errno not in {
                errno.EINVAL,
                errno.EFAULT,
                errno.EBADF,
                errno.ESRCH,
                errno.ENODEV,
            }:
                raise

    return attempt
