"""System calls through which one process of a job could say something to another, or learn something of it.

Processes that share no writable file still share a kernel, and it has state that one process changes and another
reads. docs/decisions/0004-sandbox.md goes through the table of system calls and says of each kind of state what
becomes of it. Here are the calls that the filters decide on:

- state with a name or number that every process of the namespace, or of the user, can use: queues, shared memory;
- state of an inode, for which an open file is enough, though read-only: locks, leases, notifications, futexes.
  Every process opens the same libraries, also under Landlock and as another user;
- attributes of files, which their owner changes by name: Landlock restricts opening, and neither chmod nor utime;
- settings of another process, by its number: priority, affinity, limits.
"""

from __future__ import annotations

from typing import Final

IPC: Final = frozenset(
    {
        # System V and POSIX objects: found by number or name, whatever files a process may open
        "shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semctl",
        "semtimedop", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr",
        # who opens, reads or closes a shared library
        "inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "fanotify_mark",
        # the newer futex calls: as `FUTEX_WAKERS`, but not used by any library yet
        "futex_wake", "futex_requeue",
        # its contexts are counted for the machine as a whole, up to a limit
        "io_setup",
        "process_mrelease",
    }
)  # fmt: skip
"""Refused to every process of a job."""

ATTRIBUTES: Final = frozenset(
    {
        "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
        "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr",
        "lremovexattr", "fremovexattr", "removexattrat", "file_setattr",
    }
)  # fmt: skip
"""Mode, owner, times and extended attributes of files: their owner may set them for any file that it can name."""

OBSERVATION: Final = frozenset(
    {"flock", "statfs", "ustat", "sysinfo", "mincore", "cachestat", "preadv2", "pidfd_open"}
)
"""Whether a file is locked or cached, how full a file system or the memory is, which processes exist."""

ONLY_ITSELF: Final = frozenset(
    {
        "prlimit64", "sched_setparam", "sched_getparam", "sched_setscheduler", "sched_getscheduler",
        "sched_rr_get_interval", "sched_setaffinity", "sched_getaffinity", "sched_setattr", "sched_getattr",
        "getpgid", "getsid", "migrate_pages", "move_pages", "get_robust_list",
    }
)  # fmt: skip
"""Their first argument is a process: only 0, which is the caller, and the caller's number are allowed."""

ONLY_ITSELF_OF_KIND: Final = {"getpriority": 0, "setpriority": 0, "ioprio_get": 1, "ioprio_set": 1}
"""Their first argument is a kind of target; the value is the kind `process`, and the second is the process.

The other kinds, group and user, reach other processes even with 0.
"""

FCNTL: Final = frozenset(
    {
        5, 6, 7, 36, 37, 38,  # F_GETLK, F_SETLK, F_SETLKW and F_OFD_*: two numbers of 63 bits on any open file
        8, 10, 15,  # F_SETOWN, F_SETSIG, F_SETOWN_EX: the kernel sends any signal, on behalf of this process
        1024, 1026,  # F_SETLEASE, F_NOTIFY
        1036, 1038,  # F_SET_RW_HINT, F_SET_FILE_RW_HINT: a number stored with the inode
    }
)  # fmt: skip
"""Commands of fcntl(2) that are refused; from linux/fcntl.h."""

IOCTL: Final = frozenset(
    {
        0x5412, 0x541C,  # TIOCSTI, TIOCLINUX: type into the terminal of whoever started the job
        0x8901, 0x8902, 0x5410,  # FIOSETOWN, SIOCSPGRP, TIOCSPGRP: whom the kernel signals
        0x40045431, 0x5441,  # TIOCSPTLCK, TIOCGPTPEER: a locked pseudo-terminal has one end
        0x40086602, 0x401C5820, 0x40087602,  # FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION
    }
)  # fmt: skip
"""Requests of ioctl(2) that are refused; from asm-generic/ioctls.h, asm-generic/sockios.h and linux/fs.h."""

PRCTL: Final = frozenset({4, 0x59616D61, 62})
"""PR_SET_DUMPABLE, PR_SET_PTRACER (to become traceable again) and PR_SCHED_CORE."""

CLOCKS: Final = frozenset({"clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"})
CLOCK_OF_PROCESS: Final = 0x80000000
"""Negative clock ids are another process's or thread's processor time, in nanoseconds, or a clock device."""

FUTEX_WAITERS: Final = frozenset({0, 9})
"""FUTEX_WAIT and FUTEX_WAIT_BITSET: glibc waits for the end of a thread with a futex that is not private."""
FUTEX_PRIVATE: Final = 128
FUTEX_OPERATION: Final = 127
