"""Gives up privileges of this process: core dumps, being traced, capabilities, its user, the network."""

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
    """Switches core dumps off, creates files for the owner only, and refuses tracing by the same user.

    Raises:
        OSError: the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(PRIVATE_UMASK)
    refuse_tracing()


def refuse_tracing() -> None:
    """Refuses tracing by other processes of the same user, and access to this process's memory in /proc.

    Raises:
        OSError: the kernel refuses.
    """
    prctl(_PR_SET_DUMPABLE, 0)


def has_no_core_dumps() -> bool:
    """Returns whether a crash leaves no core dump, neither as a file nor through a pipe to a program."""
    return resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def is_dumpable() -> bool:
    """Returns whether other processes of this user may trace this one."""
    return prctl(_PR_GET_DUMPABLE) != 0


def end_with_parent() -> None:
    """Makes the kernel kill this process when its parent ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def lock_memory() -> bool:
    """Locks this process's memory if the amount is unlimited; returns whether it is locked.

    With a limit, even a large one, nothing is locked: an allocation above it would fail at any later moment.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(
            resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return False
    # ONFAULT locks pages when they are first used: the address space of the libraries is much larger.
    try:
        mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    except OSError:
        return False
    return True


def leave_network() -> bool:
    """Enters a new network namespace, without interfaces; returns False if that is not permitted."""
    try:
        syscall("unshare", _CLONE_NEWNET)
    except OSError:
        return False
    return True


def become(uid: int, gid: int) -> None:
    """Becomes another user irrevocably, without supplementary groups.

    Raises:
        OSError: not permitted.
    """
    # Groups before the user: after setresuid this process may change neither. All three ids, real, effective and
    # saved, since a saved 0 could be taken back.
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def permitted() -> frozenset[int]:
    """Returns the numbers of this thread's permitted capabilities (capabilities(7))."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    syscall("capget", header, data)
    # Six words: effective, permitted, inheritable of capabilities 0 to 31, then the same of 32 to 63.
    words = struct.unpack("=6I", data.raw)
    mask = words[1] | words[4] << 32
    return frozenset(number for number in range(_LAST_CAPABILITY + 1) if mask >> number & 1)


def empty_bounding_set(keep: Iterable[int] = ()) -> None:
    """Removes all but `keep` from the bounding set, if that is permitted.

    If it is not, no-new-privileges makes the set irrelevant.
    """
    retained = frozenset(keep)
    with contextlib.suppress(OSError):
        for number in range(_LAST_CAPABILITY + 1):
            if number not in retained:
                prctl(_PR_CAPBSET_DROP, number)


def drop_capabilities(keep: Iterable[int] = ()) -> None:
    """Drops, irrevocably, every capability but those of `keep` that are held now.

    Raises:
        OSError: the kernel refuses to take capabilities away.
    """
    retained = permitted() & frozenset(keep)  # capset refuses to add capabilities (EPERM)
    with contextlib.suppress(OSError):  # Linux before 4.3 has no ambient set
        syscall("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    mask = sum(1 << number for number in retained)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    # Effective, permitted and inheritable, low words first: nothing is inherited by a program that is run.
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    syscall("capset", header, struct.pack("=6I", low, low, 0, high, high, 0))


def refuse_new_privileges() -> None:
    """Sets no-new-privileges, which seccomp filters and Landlock require.

    Raises:
        OSError: the kernel is older than Linux 3.5.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def may_gain_privileges() -> bool:
    """Returns whether running a program could still gain privileges."""
    return prctl(_PR_GET_NO_NEW_PRIVS) == 0
