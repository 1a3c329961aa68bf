"""Every call of the kernel's table has an answer to the question: could two processes of a job talk through it?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sandbox.test_filters import ALLOW, EVERY, REFUSE, WORKER, decide
from trainer.sandbox import channels
from trainer.sandbox.confine import _refused_state
from trainer.sandbox.filters import KERNEL_DOORS, OTHER_USERS, PROGRAMS, SIGNALS, TRACING
from trainer.sandbox.plan import Role
from trainer.sandbox.syscalls import LAST_KNOWN, NUMBERS

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

ITSELF = set(
    """brk mmap mprotect munmap mremap msync madvise mbind set_mempolicy get_mempolicy set_mempolicy_home_node
    pkey_mprotect pkey_alloc pkey_free mseal map_shadow_stack remap_file_pages memfd_secret arch_prctl
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause
    nanosleep getitimer alarm setitimer timer_settime timer_gettime timer_getoverrun timer_delete time
    gettimeofday getpid gettid getuid getgid geteuid getegid getresuid getresgid getgroups getppid getpgrp setsid
    umask getrlimit setrlimit getrusage times uname capget exit exit_group restart_syscall set_tid_address
    set_robust_list set_thread_area get_thread_area rseq membarrier seccomp landlock_create_ruleset
    landlock_add_rule landlock_restrict_self sched_yield sched_get_priority_max sched_get_priority_min getcpu
    getrandom futex_wait futex_waitv uretprobe uprobe lsm_get_self_attr lsm_list_modules""".split()  # noqa: SIM905
)
"""Memory, handlers, timers, limits and identity of the caller."""
CHILDREN = set("wait4 waitid setpgid".split())  # noqa: SIM905
"""Children of the caller alone, which only a worker with a compiler has."""
BY_NAME = set(
    """open openat openat2 creat stat lstat newfstatat statx access faccessat faccessat2 truncate rename renameat
    renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat readlink readlinkat chdir getcwd
    getxattr lgetxattr listxattr llistxattr getxattrat listxattrat file_getattr
    """.split()  # noqa: SIM905
)
"""Files by name: what changes them needs a directory or file that two may write to (users, Landlock, mounts)."""
OPENED = set(
    """read write close lseek pread64 pwrite64 readv writev preadv pwritev pwritev2 fstat poll select pselect6
    ppoll dup dup2 dup3 pipe pipe2 sendfile splice tee vmsplice copy_file_range fsync fdatasync sync_file_range
    ftruncate fallocate getdents getdents64 fchdir fstatfs fgetxattr flistxattr close_range epoll_create
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 epoll_ctl_old epoll_wait_old eventfd eventfd2
    signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime memfd_create sendto recvfrom sendmsg
    recvmsg sendmmsg recvmmsg shutdown getsockname getpeername setsockopt getsockopt io_destroy io_getevents
    io_pgetevents io_submit io_cancel""".split()  # noqa: SIM905
)
"""What the caller has opened, or was handed: a file by name, a pipe or socket to the supervisor, nothing else."""
MACHINE = set(
    "sync syncfs readahead fadvise64 mlock mlock2 munlock mlockall munlockall sysinfo flock".split()  # noqa: SIM905
)
"""Load, memory and cached pages of the machine as a whole: docs/threat-model.md, Not covered."""
NOT_THERE = set(
    """_sysctl get_kernel_syms query_module getpmsg putpmsg afs_syscall tuxcall security vserver sysfs""".split()  # noqa: SIM905
)
"""In no kernel of today; and `sysfs`, which names file systems."""
OWN_LABEL = {"lsm_set_self_attr"}
"""Smack's and AppArmor's label of the caller, seen in /proc as its command line is (Not covered)."""

ALLOWED = ITSELF | CHILDREN | BY_NAME | OPENED | MACHINE | NOT_THERE | OWN_LABEL
BY_ARGUMENT = {
    "ioctl", "fcntl", "prctl", "futex", "socket", "clone", "tkill", *SIGNALS, *channels.ONLY_ITSELF,
    *channels.ONLY_ITSELF_OF_KIND, *channels.CLOCKS,
}  # fmt: skip
SOCKETS = {"connect", "accept", "accept4", "bind", "listen", "socketpair"}
"""Refused by role; a pair is the caller's own."""
REFUSED = {
    *TRACING,
    *KERNEL_DOORS,
    *OTHER_USERS,
    *PROGRAMS,
    *channels.IPC,
    "pidfd_send_signal",
    "clone3",
}
OF_CHILDREN = channels.ATTRIBUTES | channels.OBSERVATION
"""Refused to the front; the attributes to the worker, too."""
NEWER = {
    "uretprobe": 335, "uprobe": 336, "set_mempolicy_home_node": 450, "map_shadow_stack": 453, "futex_wait": 455,
    "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462, "getxattrat": 464,
    "listxattrat": 465, "file_getattr": 468,
}  # fmt: skip
"""Of the table of Linux 6.18, those that are neither in `NUMBERS` nor in the headers of Debian 12."""


def table() -> dict[str, int]:
    """Name → number, of Linux 6.18."""
    if not HEADER.exists():
        pytest.skip("no kernel headers here")
    listed = {
        name: int(number)
        for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADER.read_text())
    }
    return {**listed, **NEWER, **NUMBERS}


def test_every_call_has_one_answer() -> None:
    calls = table()
    assert max(calls.values()) == LAST_KNOWN
    missing = set(range(LAST_KNOWN + 1)) - set(calls.values())
    assert missing == set(range(337, 424)), "numbers that no call has"
    answers = [
        ALLOWED - OF_CHILDREN,
        BY_ARGUMENT,
        SOCKETS,
        REFUSED - BY_ARGUMENT,
        OF_CHILDREN - REFUSED,
    ]
    assert set(calls) == set().union(*answers)
    assert sum(map(len, answers)) == len(set().union(*answers)), "two answers"


def test_the_filters_give_these_answers() -> None:
    calls = table()
    for filter_ in EVERY:
        for name in REFUSED - PROGRAMS:
            assert decide(filter_, calls[name]) & 0xFFFF0000 == REFUSE, name
    for name in ALLOWED:
        assert decide(WORKER, calls[name]) == ALLOW, name


def test_what_children_may_not_change_or_observe() -> None:
    assert _refused_state(Role.FRONT) == OF_CHILDREN
    assert _refused_state(Role.WORKER) == channels.ATTRIBUTES
