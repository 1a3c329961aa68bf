"""seccomp filters as classic BPF programs. Pure: it makes the bytes of a program from what is refused.

A filter allows every call that it does not name, apart from calls newer than the table in `syscalls`. An allow
list is not workable: a training stack with a GPU driver uses many calls, and different ones in each release. Named
are the calls that reach beyond the process. Instructions and `struct seccomp_data`:
Documentation/userspace-api/seccomp_filter.rst and linux/filter.h.

BPF jumps are relative and forward only. Each block therefore begins with a comparison that skips the block if it
does not match, and a block that matches ends in a return.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final

from trainer.sandbox import channels
from trainer.sandbox.syscalls import LAST_KNOWN, NUMBERS

AUDIT_ARCH_X86_64: Final = 0xC000003E

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_NUMBER, _ARCH, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32
"""Offsets into seccomp_data; for 64-bit arguments, the lower half: these calls use 32 bits of them."""

_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000

_UNIX, _NETLINK = 1, 16
_NETLINK_ROUTE: Final = 0
_KIND: Final = 0xF
"""The bits of socket()'s second argument that hold the type; the others are flags."""

_CLONE_THREAD: Final = 0x00010000
_CLONE_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (linux/sched.h)."""

TRACING: Final = frozenset(
    {"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd"}
)
"""Tracing other processes, and reading their memory and descriptors."""

KERNEL_DOORS: Final = frozenset(
    {
        # file systems and roots
        "mount", "umount2", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree",
        "open_tree_attr", "mount_setattr", "statmount", "listmount", "pivot_root", "chroot", "mknod", "mknodat",
        "name_to_handle_at", "open_by_handle_at", "quotactl", "quotactl_fd", "fanotify_init", "swapon",
        "swapoff", "acct", "nfsservctl",
        # namespaces
        "unshare", "setns",
        # code and hooks in the kernel
        "init_module", "finit_module", "delete_module", "create_module", "kexec_load", "kexec_file_load", "bpf",
        "perf_event_open", "lookup_dcookie",
        # large or little used interfaces with a history
        "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "keyctl", "add_key",
        "request_key", "modify_ldt", "uselib", "personality", "vhangup",
        # the machine
        "reboot", "syslog", "iopl", "ioperm", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex",
        "sethostname", "setdomainname",
    }
)  # fmt: skip
"""Calls that no process of a job needs, whatever user it runs as."""

OTHER_USERS: Final = frozenset(
    {
        "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups",
        "capset",
    }
)  # fmt: skip

PROGRAMS: Final = frozenset({"execve", "execveat", "fork", "vfork"})
"""Running programs and creating processes; `clone` has a block of its own, since it also creates threads."""

SIGNALS: Final = frozenset({"kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"})
"""Their first argument is a process."""


@dataclass(frozen=True)
class Filter:
    """The calls that are refused to one process, in addition to those refused to every process.

    Args:
        refused: further system calls, by name.
        families: address families that socket() allows.
        unix_kind: the only type of unix socket that is allowed; None allows all, if `families` has unix.
        interfaces: whether a netlink socket may list the network interfaces.
        programs: whether it may create processes and run programs.
        own_pid: the only process that may be signalled; None allows all.
        pid: the process itself, the only one whose settings may be read and changed.
    """

    refused: frozenset[str] = frozenset()
    families: frozenset[int] = frozenset()
    unix_kind: int | None = None
    interfaces: bool = False
    programs: bool = False
    own_pid: int | None = None
    pid: int = 0


def program(wanted: Filter) -> bytes:
    """Returns the BPF program: an array of `struct sock_filter`."""
    # Calls that are refused whatever their arguments, then a block for each whose arguments decide. Every block
    # begins by comparing the number and the default is to allow, so the order of the blocks does not matter.
    always = TRACING | KERNEL_DOORS | OTHER_USERS | channels.IPC | frozenset({"pidfd_send_signal"})
    refused = always | wanted.refused | (frozenset() if wanted.programs else PROGRAMS)
    code = _only_this_architecture()
    for number in sorted(NUMBERS[name] for name in refused):
        code += _return_if(number, _ERRNO | errno.EPERM)
    # BPF cannot read clone3's flags, which are in memory; libc falls back to clone.
    code += _return_if(NUMBERS["clone3"], _ERRNO | errno.ENOSYS)
    code += _clone(programs=wanted.programs)
    code += _commands()
    code += _futex()
    code += _only_itself(wanted.pid)
    for name in sorted(channels.CLOCKS):
        refuse = [
            _do(_ANY_BIT, channels.CLOCK_OF_PROCESS, if_false=1),
            _do(_RETURN, _ERRNO | errno.EPERM),
        ]
        block = [_do(_LOAD, _FIRST), *refuse, _do(_RETURN, _ALLOW)]
        code += [_do(_EQUAL, NUMBERS[name], if_false=len(block)), *block]
    code += _sockets(wanted)
    if wanted.own_pid is not None:
        # tkill names a thread of any process; tgkill, which libc uses, names the process as well.
        code += _return_if(NUMBERS["tkill"], _ERRNO | errno.EPERM)
        for name in sorted(SIGNALS):
            code += _only_with(
                NUMBERS[name], [_do(_LOAD, _FIRST), *_return_if(wanted.own_pid, _ALLOW)]
            )
    return b"".join([*code, _do(_RETURN, _ALLOW)])


def _do(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Returns one `struct sock_filter`: code, jump if true, jump if false, operand."""
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _only_this_architecture() -> list[bytes]:
    """Kills on another architecture, where numbers mean other calls; refuses x32 and unknown calls."""
    # ENOSYS for unknown numbers: libc then uses an older call, which the table decides on. x32 numbers have bit 30
    # set, so they are greater than every number of the table.
    return [
        _do(_LOAD, _ARCH),
        _do(_EQUAL, AUDIT_ARCH_X86_64, if_true=1),
        _do(_RETURN, _KILL_PROCESS),
        _do(_LOAD, _NUMBER),
        _do(_GREATER, LAST_KNOWN, if_false=1),
        _do(_RETURN, _ERRNO | errno.ENOSYS),
    ]


def _return_if(value: int, answer: int) -> list[bytes]:
    """Ends the filter with `answer` if the loaded word is `value`."""
    return [_do(_EQUAL, value, if_false=1), _do(_RETURN, answer)]


def _sockets(wanted: Filter) -> list[bytes]:
    """Allows socket() for some families; for unix and netlink, if at all, for one type or protocol."""
    unrestricted = set(wanted.families) - ({_UNIX} if wanted.unix_kind is not None else set())
    block = [
        _do(_LOAD, _FIRST),
        *(line for family in sorted(unrestricted) for line in _return_if(family, _ALLOW)),
    ]
    if wanted.unix_kind is not None and _UNIX in wanted.families:
        block += _only_with(
            _UNIX, [_do(_LOAD, _SECOND), _do(_AND, _KIND), *_return_if(wanted.unix_kind, _ALLOW)]
        )
    if wanted.interfaces:
        block += _only_with(_NETLINK, [_do(_LOAD, _THIRD), *_return_if(_NETLINK_ROUTE, _ALLOW)])
    block.append(_do(_RETURN, _ERRNO | errno.EPERM))
    return [_do(_EQUAL, NUMBERS["socket"], if_false=len(block)), *block]


def _only_with(value: int, conditions: list[bytes]) -> list[bytes]:
    """Allows a call whose loaded word, its number or its address family, is `value` only if `conditions` do."""
    # The conditions load another word over this one. The block always returns, so that no later comparison takes
    # that word for the number or the family.
    block = [*conditions, _do(_RETURN, _ERRNO | errno.EPERM)]
    return [_do(_EQUAL, value, if_false=len(block)), *block]


def _clone(*, programs: bool) -> list[bytes]:
    """Allows threads; processes only if programs are allowed; namespaces never."""
    # CLONE_THREAD distinguishes a thread from a process. A namespace would give new capabilities inside it, so
    # those flags are refused first.
    block = [
        _do(_LOAD, _FIRST),
        _do(_ANY_BIT, _CLONE_NAMESPACES, if_false=1),
        _do(_RETURN, _ERRNO | errno.EPERM),
        _do(_ANY_BIT, 0xFFFFFFFF if programs else _CLONE_THREAD, if_false=1),
        _do(_RETURN, _ALLOW),
        _do(_RETURN, _ERRNO | errno.EPERM),
    ]
    return [_do(_EQUAL, NUMBERS["clone"], if_false=len(block)), *block]


def _commands() -> list[bytes]:
    """Refuses some options of prctl (to become traceable again), and some commands of ioctl and fcntl."""
    code: list[bytes] = []
    for name, offset, values in (
        ("prctl", _FIRST, channels.PRCTL),
        ("ioctl", _SECOND, channels.IOCTL),
        ("fcntl", _SECOND, channels.FCNTL),
    ):
        refusals = (
            line for value in sorted(values) for line in _return_if(value, _ERRNO | errno.EPERM)
        )
        block = [_do(_LOAD, offset), *refusals, _do(_RETURN, _ALLOW)]
        code += [_do(_EQUAL, NUMBERS[name], if_false=len(block)), *block]
    return code


def _futex() -> list[bytes]:
    """Allows private futexes; of others, which can name a page of a file, only waiting."""
    # A waiter on a page of a library, mapped read-only, is counted by whoever else wakes "its" futex there.
    waiters = (
        line for value in sorted(channels.FUTEX_WAITERS) for line in _return_if(value, _ALLOW)
    )
    block = [
        _do(_LOAD, _SECOND),
        _do(_ANY_BIT, channels.FUTEX_PRIVATE, if_false=1),
        _do(_RETURN, _ALLOW),
        _do(_AND, channels.FUTEX_OPERATION),
        *waiters,
        _do(_RETURN, _ERRNO | errno.EPERM),
    ]
    return [_do(_EQUAL, NUMBERS["futex"], if_false=len(block)), *block]


def _only_itself(pid: int) -> list[bytes]:
    """Allows the settings of a process, such as its priority, for the caller alone: as 0 or by its number."""
    itself = [line for value in sorted({0, pid}) for line in _return_if(value, _ALLOW)]
    code: list[bytes] = []
    for name in sorted(channels.ONLY_ITSELF):
        code += _only_with(NUMBERS[name], [_do(_LOAD, _FIRST), *itself])
    for name, kind in sorted(channels.ONLY_ITSELF_OF_KIND.items()):
        code += _only_with(
            NUMBERS[name], [_do(_LOAD, _FIRST), *_only_with(kind, [_do(_LOAD, _SECOND), *itself])]
        )
    return code
