"""What a process gives up by itself: core dumps, tracers of its own user, capabilities, its user, the network."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable
from typing import Final

from trainer.sandbox.syscalls import mlockall, prctl, syscall

CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_CHOWN: Final = 0
_LAST_CAPABILITY: Final = 63

_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 3, 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_CLONE_NEWNET: Final = 0x40000000
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4

PRIVATE_UMASK: Final = 0o077


def keep_to_itself() -> None:
    """No core dumps, files for the owner only, memory and descriptors closed to others of the same user.

    Raises:
        OSError: the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(PRIVATE_UMASK)
    prctl(_PR_SET_DUMPABLE, 0)


def has_no_core_dumps() -> bool:
    """Whether a crash leaves no core dump: neither a file nor, since there is nothing to read, a pipe's."""
    return resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def is_dumpable() -> bool:
    """Whether other processes of this user may look into this one."""
    return prctl(_PR_GET_DUMPABLE) != 0


def end_with_parent() -> None:
    """The kernel kills this process when the one that started it is gone."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def lock_memory() -> bool:
    """Keep this process's memory out of any swap, where an unlimited amount may be locked; whether that is so.

    A limit, even a large one, is not used: an allocation above it would fail later, in the middle of something.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return False
    try:
        mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    except OSError:
        return False
    return True


def leave_network() -> bool:
    """Go into a network namespace of one's own, without interfaces; False where that is not permitted."""
    try:
        syscall("unshare", _CLONE_NEWNET)
    except OSError:
        return False
    return True


def become(uid: int, gid: int) -> None:
    """Be another user for good, without supplementary groups.

    Raises:
        OSError: not permitted.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def permitted() -> frozenset[int]:
    """Numbers of the capabilities that this thread may use (capabilities(7))."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    syscall("capget", header, data)
    words = struct.unpack("=6I", data.raw)
    mask = words[1] | words[4] << 32
    return frozenset(number for number in range(_LAST_CAPABILITY + 1) if mask >> number & 1)


def empty_bounding_set(keep: Iterable[int] = ()) -> None:
    """Take all but `keep` from the set that programs run from here could gain, where that is permitted.

    Where it is not, no-new-privileges keeps the set from mattering.
    """
    kept = frozenset(keep)
    with contextlib.suppress(OSError):
        for number in range(_LAST_CAPABILITY + 1):
            if number not in kept:
                prctl(_PR_CAPBSET_DROP, number)


def drop_capabilities(keep: Iterable[int] = ()) -> None:
    """Hold no capability but those of `keep` that are held now, and never regain one.

    Raises:
        OSError: the kernel refuses to take capabilities away.
    """
    kept = permitted() & frozenset(keep)
    with contextlib.suppress(OSError):
        _clear_ambient()
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    syscall("capset", header, struct.pack("=6I", low, low, 0, high, high, 0))


def _clear_ambient() -> None:
    syscall("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def refuse_new_privileges() -> None:
    """No program run from here gains privileges; filters and Landlock need it.

    Raises:
        OSError: the kernel is older than Linux 3.5.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def may_gain_privileges() -> bool:
    """Whether running a program could still give privileges."""
    return prctl(_PR_GET_NO_NEW_PRIVS) == 0
