"""Restricts the files that a process may access with Landlock (landlock(7), linux/landlock.h).

Rights that this kernel's Landlock does not have are left out; `abi()` returns its version. Version 1 has
files; 2 renames between directories; 3 truncation; 4 TCP ports; 5 device controls; 6 signals and abstract sockets.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Final

from trainer.sandbox.syscalls import syscall

_CREATE_RULESET_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_HIGHEST: Final = 7
"""Newest version that was examined; a newer kernel is used as this version."""


class Access(IntFlag):
    """LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ: Final = Access.READ_FILE | Access.READ_DIR
RUN: Final = READ | Access.EXECUTE
DEVICE: Final = READ | Access.WRITE_FILE | Access.IOCTL_DEV
REMOVE: Final = Access.REMOVE_DIR
NAME: Final = Access.WRITE_FILE | Access.TRUNCATE
WRITE: Final = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REFER
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SYM
)
_OF_FILES: Final = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)

_ALL_NET: Final = 0b11
"""LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP."""
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 0b01, 0b10


@dataclass(frozen=True)
class PathRule:
    """Rights to a file, or to a directory and everything below it."""

    path: Path
    access: Access


def abi() -> int:
    """Returns the version of this kernel's Landlock; 0 if it has none."""
    try:
        return syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}:
            return 0
        raise


def restrict(rules: Iterable[PathRule], *, signals: bool, ports: bool) -> bool:
    """Allows this thread, and those it creates, only what `rules` allow, irrevocably. Needs no-new-privileges.

    Args:
        rules: what is allowed; rules for missing paths are left out.
        signals: whether processes outside may be signalled.
        ports: whether TCP ports may be bound and connected to.

    Returns:
        False if the kernel has no Landlock; then nothing changes.

    Raises:
        OSError: the kernel refused a ruleset that its version should accept.
    """
    version = min(abi(), _HIGHEST)
    if version == 0:
        return False
    # A right that a ruleset does not handle stays unrestricted: handle all of them, then allow some by rules.
    known = handled(version)
    ruleset = syscall(
        "landlock_create_ruleset", *_attributes(version, known, signals=signals, ports=ports), 0
    )
    try:
        for rule in rules:
            _add(ruleset, rule, known)
        # Last: the rules are fixed from here on, and later rulesets can only restrict further.
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return True


def handled(version: int) -> Access:
    """Returns the rights that a version of Landlock restricts."""
    newer = {2: Access.REFER, 3: Access.TRUNCATE, 5: Access.IOCTL_DEV}
    known = Access((1 << 13) - 1)
    for since, right in newer.items():
        if version >= since:
            known |= right
    return known


def _attributes(version: int, known: Access, *, signals: bool, ports: bool) -> tuple[bytes, int]:
    """Returns `struct landlock_ruleset_attr`, in the length of that version, and its length."""
    scoped = _SCOPE_ABSTRACT_SOCKETS | (0 if signals else _SCOPE_SIGNALS)
    fields = [int(known)]
    if version >= 4:
        fields.append(0 if ports else _ALL_NET)
    if version >= 6:
        fields.append(scoped)
    # An older kernel refuses (E2BIG) a longer struct with bits that it does not know.
    packed = struct.pack(f"={len(fields)}Q", *fields)
    return packed, len(packed)


def _add(ruleset: int, rule: PathRule, known: Access) -> None:
    """Adds one rule; a missing path, such as the device of an absent GPU, is left out."""
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # The kernel refuses (EINVAL) rights of directories for a file.
        allowed = rule.access & known & (~Access(0) if rule.path.is_dir() else _OF_FILES)
        if allowed:
            syscall(
                "landlock_add_rule",
                ruleset,
                _PATH_BENEATH,
                struct.pack("=Qi", allowed, descriptor),
                0,
            )
    finally:
        os.close(descriptor)
