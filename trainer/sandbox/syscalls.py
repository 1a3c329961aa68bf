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
        "ioctl": 16, "mincore": 27, "shmget": 29, "shmat": 30, "shmctl": 31, "socket": 41, "connect": 42,
        "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58,
        "execve": 59, "kill": 62, "semget": 64, "semop": 65, "semctl": 66, "shmdt": 67, "msgget": 68,
        "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "fcntl": 72, "flock": 73, "chmod": 90, "fchmod": 91,
        "chown": 92, "fchown": 93, "lchown": 94, "sysinfo": 99, "ptrace": 101, "syslog": 103, "setuid": 105,
        "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116, "setresuid": 117, "setresgid": 119,
        "getpgid": 121, "setfsuid": 122, "setfsgid": 123, "getsid": 124, "capget": 125, "capset": 126,
        "rt_sigqueueinfo": 129, "utime": 132, "mknod": 133, "uselib": 134, "personality": 135, "ustat": 136,
        "statfs": 137, "getpriority": 140, "setpriority": 141, "sched_setparam": 142, "sched_getparam": 143,
        "sched_setscheduler": 144, "sched_getscheduler": 145, "sched_rr_get_interval": 148, "vhangup": 153,
        "modify_ldt": 154, "pivot_root": 155, "prctl": 157, "adjtimex": 159, "chroot": 161, "acct": 163,
        "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
        "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "create_module": 174,
        "init_module": 175, "delete_module": 176, "quotactl": 179, "nfsservctl": 180, "setxattr": 188,
        "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
        "tkill": 200, "futex": 202, "sched_setaffinity": 203, "sched_getaffinity": 204, "io_setup": 206,
        "lookup_dcookie": 212, "semtimedop": 220, "timer_create": 222, "clock_settime": 227,
        "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "tgkill": 234, "utimes": 235,
        "mq_open": 240, "mq_unlink": 241, "mq_timedsend": 242, "mq_timedreceive": 243, "mq_notify": 244,
        "mq_getsetattr": 245, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
        "ioprio_set": 251, "ioprio_get": 252, "inotify_init": 253, "inotify_add_watch": 254,
        "inotify_rm_watch": 255, "migrate_pages": 256, "mknodat": 259, "fchownat": 260, "futimesat": 261,
        "fchmodat": 268, "unshare": 272, "get_robust_list": 274, "move_pages": 279, "utimensat": 280,
        "accept4": 288, "inotify_init1": 294, "rt_tgsigqueueinfo": 297, "perf_event_open": 298,
        "fanotify_init": 300, "fanotify_mark": 301, "prlimit64": 302, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "sched_setattr": 314, "sched_getattr": 315,
        "seccomp": 317, "kexec_file_load": 320, "bpf": 321, "execveat": 322, "userfaultfd": 323, "preadv2": 327,
        "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
        "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
        "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
        "quotactl_fd": 443, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
        "landlock_restrict_self": 446, "process_mrelease": 448, "cachestat": 451, "fchmodat2": 452,
        "futex_wake": 454, "futex_requeue": 456, "statmount": 457, "listmount": 458, "setxattrat": 463,
        "removexattrat": 466, "open_tree_attr": 467, "file_setattr": 469,
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
