"""System calls made directly through `ctypes`: the standard library offers few of those that a sandbox needs.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.18. A confidential VM (Intel TDX) is x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SUPPORTED: Final = platform.machine() == "x86_64"
"""Whether the numbers below apply to this machine."""

LAST_KNOWN: Final = 469
"""file_setattr: the newest call of the table that was examined. Filters refuse newer calls."""

NUMBERS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "ioctl": 16, "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53,
        "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "syslog": 103,
        "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116, "setresuid": 117,
        "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capget": 125, "capset": 126,
        "rt_sigqueueinfo": 129, "mknod": 133, "uselib": 134, "personality": 135, "vhangup": 153,
        "modify_ldt": 154, "pivot_root": 155, "prctl": 157, "adjtimex": 159, "chroot": 161, "acct": 163,
        "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
        "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "create_module": 174,
        "init_module": 175, "delete_module": 176, "quotactl": 179, "nfsservctl": 180, "tkill": 200,
        "lookup_dcookie": 212, "clock_settime": 227, "tgkill": 234, "kexec_load": 246, "add_key": 248,
        "request_key": 249, "keyctl": 250, "mknodat": 259, "unshare": 272, "accept4": 288,
        "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "seccomp": 317, "kexec_file_load": 320,
        "bpf": 321, "execveat": 322, "userfaultfd": 323, "pidfd_send_signal": 424, "io_uring_setup": 425,
        "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
        "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "pidfd_getfd": 438,
        "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "landlock_create_ruleset": 444,
        "landlock_add_rule": 445, "landlock_restrict_self": 446, "statmount": 457, "listmount": 458,
        "open_tree_attr": 467,
    }
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Makes a system call by its name in `NUMBERS`.

    Args:
        name: key in `NUMBERS`.
        arguments: integers as they are, buffers by address, None as a null pointer.

    Raises:
        OSError: the kernel's answer; ENOSYS on another architecture.
    """
    if not SUPPORTED:
        raise OSError(errno.ENOSYS, f"{name}: system call numbers are known for x86-64 only")
    # As c_long: ctypes passes a plain int as a C int and would cut addresses to 32 bits.
    words = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = _libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)


def prctl(option: int, value: int = 0) -> int:
    """Calls prctl with one argument; the rest are zeros, as the newer options demand.

    Raises:
        OSError: the kernel's answer.
    """
    zero = ctypes.c_ulong(0)
    result = int(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
    return result


def mlockall(flags: int) -> None:
    """Locks this process's pages into memory, as the flags say.

    Raises:
        OSError: the kernel's answer.
    """
    if _libc.mlockall(ctypes.c_int(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mlockall: {os.strerror(number)}")


def is_single_threaded() -> bool:
    """Returns whether this process has one thread: most of the sandbox applies to the calling thread only."""
    return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 -- names suffice
