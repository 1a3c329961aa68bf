"""Tries, after a process has confined itself, what it must not be able to do. No probe does harm if it succeeds.

Each probe passes arguments that the kernel rejects as malformed (EINVAL, EFAULT, EBADF) if the call gets that far:
EPERM, EACCES and ENOSYS can only come from the sandbox.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from trainer.sandbox import channels
from trainer.sandbox.syscalls import SUPPORTED, syscall

Places = Mapping[Path, tuple[int, int]]
"""Path → device and inode."""

_REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})

INET, INET6, UNIX = 2, 10, 1
NETLINK, _PACKET, _VSOCK, _KERNEL_CRYPTO = 16, 17, 40, 38
OUTSIDE: Final = (INET, INET6, NETLINK, _PACKET, _VSOCK, _KERNEL_CRYPTO)
"""Address families, other than unix sockets, that reach beyond the process."""

_STREAM, _DATAGRAM, _RAW = 1, 2, 3
PACKETS: Final = 5
NETLINK_AUDIT: Final = 9
_NOT_SUPPORTED: Final = frozenset(
    {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}
)

_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EADDRNOTAVAIL, *_NOT_SUPPORTED})
_ADDRESSES: Final = (
    (INET, struct.pack("=H", INET) + bytes.fromhex("0009 c0000201") + bytes(8)),
    (
        INET6,
        struct.pack("=H", INET6)
        + bytes.fromhex("0009 00000000 20010db8")
        + bytes(11)
        + b"\1"
        + bytes(4),
    ),
)
"""`sockaddr` of port 9 of 192.0.2.1 and 2001:db8::1, which are for documentation (RFC 5737, RFC 3849)."""

_PTRACE_PEEKDATA: Final = 2
_FUTEX_WAKE: Final = 1
_NO_PROCESS: Final = 0x0FFFFFFF
"""Greater than every process id (PID_MAX_LIMIT is 2^22): a call that is not refused has no target (ESRCH)."""
_KINDS: Final = tuple(channels.ONLY_ITSELF_OF_KIND.items())
_SIGCHLD: Final = 17
_CLONE_SIGHAND: Final = 0x800
"""Without CLONE_VM the kernel rejects this flag (EINVAL): clone() with it creates no process."""


def is_refused(attempt: Callable[[], object], *, also: Iterable[int] = ()) -> bool:
    """Returns whether the sandbox refuses an attempt; False if it works or fails for another reason."""
    try:
        attempt()
    except OSError as error:
        return error.errno in _REFUSALS or error.errno in frozenset(also)
    return False


def all_refused(calls: Iterable[tuple[str, tuple[int | bytes | None, ...]]]) -> bool:
    """Returns whether the sandbox refuses each of these system calls."""
    return SUPPORTED and all(
        is_refused(partial(syscall, name, *arguments)) for name, arguments in calls
    )


def no_sockets(families: Iterable[int], *, protocol: int = 0) -> bool:
    """Returns whether no socket of these families can be created; a family that the kernel lacks counts."""

    def make(family: int, kind: int) -> None:
        os.close(syscall("socket", family, kind, protocol))

    return SUPPORTED and all(
        is_refused(lambda family=family, kind=kind: make(family, kind), also=_NOT_SUPPORTED)  # type: ignore[misc]
        for family in families
        for kind in (_STREAM, _DATAGRAM, _RAW)
    )


def has_no_route() -> bool:
    """Returns whether there is no route out: connecting a datagram socket looks one up and sends nothing."""

    def name(family: int, address: bytes) -> None:
        descriptor = syscall("socket", family, _DATAGRAM, 0)
        try:
            syscall("connect", descriptor, address, len(address))
        finally:
            os.close(descriptor)

    return SUPPORTED and all(
        is_refused(lambda family=family, address=address: name(family, address), also=_NO_ROUTE)  # type: ignore[misc]
        for family, address in _ADDRESSES
    )


def no_connections() -> bool:
    """Returns whether no socket, an inherited one included, can connect or accept a connection."""
    return all_refused(
        [("connect", (-1, None, 0)), ("accept", (-1, None, None)), ("accept4", (-1, None, None, 0))]
    )


def no_programs() -> bool:
    """Returns whether no program can be run and no process created."""
    return all_refused(
        [
            ("execve", (None, None, None)),
            ("execveat", (-1, None, None, None, 0)),
            ("clone", (_CLONE_SIGHAND | _SIGCHLD, 0, None, None, 0)),
            ("clone3", (None, 0)),
        ]
    )


def no_tracing(pid: int, *, there: Places | None = None) -> bool:
    """Returns whether process `pid` cannot be traced, nor its memory or descriptors read.

    Args:
        pid: a process; 0 is what `getppid` returns to the first process of a PID namespace.
        there: as for `cannot_open`, with the file of its memory.
    """
    calls: list[tuple[str, tuple[int | bytes | None, ...]]] = [
        ("ptrace", (_PTRACE_PEEKDATA, pid, 0, 0)),
        ("process_vm_readv", (pid, None, 0, None, 0, 0)),
        ("process_vm_writev", (pid, None, 0, None, 0, 0)),
        ("pidfd_getfd", (-1, -1, 0)),
        ("kcmp", (pid, pid, 0, 0, 0)),
    ]
    if pid == 0:
        # The parent of a PID namespace's first process lies outside it: /proc shows no such process to open.
        return all_refused(calls)
    return all_refused(calls) and cannot_open([memory_of(pid)], there=there)


def memory_of(pid: int) -> Path:
    """Returns the file in /proc that holds the memory of process `pid`."""
    return Path("/proc") / str(pid) / "mem"


def no_signals(pid: int) -> bool:
    """Returns whether process `pid`, which is running, cannot be signalled."""
    return is_refused(lambda: os.kill(pid, 0))  # 0: the kernel checks permission and sends nothing


def no_kernel_doors() -> bool:
    """Returns whether the rarely needed parts of the kernel are refused."""
    return all_refused(
        [
            ("mount", (None, None, None, 0, None)),
            ("umount2", (None, 0)),
            ("fsopen", (None, 0)),
            ("open_tree", (-1, None, 0)),
            ("chroot", (None,)),
            ("pivot_root", (None, None)),
            ("mknodat", (-1, None, 0, 0)),
            ("name_to_handle_at", (-1, None, None, None, 0)),
            ("open_by_handle_at", (-1, None, 0)),
            ("unshare", (0,)),
            ("setns", (-1, 0)),
            ("init_module", (None, 0, None)),
            ("finit_module", (-1, None, 0)),
            ("bpf", (-1, None, 0)),
            ("perf_event_open", (None, 0, 0, -1, 0)),
            ("io_uring_setup", (0, None)),
            ("userfaultfd", (-1,)),
            ("keyctl", (-1, 0, 0, 0, 0)),
            ("add_key", (None, None, None, 0, 0)),
            ("personality", (0xFFFFFFFF,)),
        ]
    )


def no_root() -> bool:
    """Returns whether this process cannot become another user again."""
    return all_refused(
        [("setuid", (0,)), ("setresuid", (0, 0, 0)), ("setgid", (0,)), ("setgroups", (0, None))]
    )


def cannot_open(paths: Iterable[Path], *, there: Places | None = None) -> bool:
    """Returns whether none of these can be opened for reading. A missing path counts as open.

    Args:
        paths: what to open.
        there: paths that existed before this process confined itself: where one is now missing, it is hidden.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

    def is_closed(path: Path) -> bool:
        hidden = {errno.ENOENT} if there and path in there else ()
        return is_refused(lambda: os.close(os.open(path, flags)), also=hidden)

    return all(map(is_closed, paths))


def places(paths: Iterable[Path]) -> Places:
    """Returns where the existing ones of these paths lie: device and inode."""
    found: dict[Path, tuple[int, int]] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found[path] = (status.st_dev, status.st_ino)
    return found


def are_hidden(before: Places) -> bool:
    """Returns whether none of the paths leads to where it led before."""
    now = places(before)
    return all(now.get(path) != place for path, place in before.items())


def no_shared_folders(before: Places) -> bool:
    """Returns whether each of these directories is another one than before, or no file can be created in it."""
    now = places(before)
    return cannot_write_into(path for path, place in before.items() if now.get(path) == place)


def no_shared_state() -> bool:
    """Returns whether the kernel refuses what reaches other processes without a file or socket."""
    kinds = (*_KINDS, *((name, kind + 1) for name, kind in _KINDS))  # `process` and `group`
    return all_refused(
        [
            ("shmget", (0, 0, 0)),
            ("shmat", (-1, None, 0)),
            ("msgget", (0, 0)),
            ("msgsnd", (-1, None, 0, 0)),
            ("semget", (0, -1, 0)),
            ("semop", (-1, None, 0)),
            ("mq_open", (None, 0, 0, None)),
            ("mq_timedsend", (-1, None, 0, 0, None)),
            ("inotify_init1", (-1,)),
            ("fanotify_mark", (-1, 0, 0, -1, None)),
            ("io_setup", (0, None)),
            ("futex", (None, _FUTEX_WAKE, 0, None, None, 0)),
            ("clock_gettime", (~_NO_PROCESS << 3 | 2, None)),
            *(("fcntl", (-1, command, 0)) for command in sorted(channels.FCNTL)),
            *(("ioctl", (-1, request, 0)) for request in sorted(channels.IOCTL)),
            *((name, (_NO_PROCESS, 0, 0, 0)) for name in sorted(channels.ONLY_ITSELF)),
            *((name, (kind, _NO_PROCESS, 0)) for name, kind in kinds),
        ]
    )


def no_calls(names: Iterable[str]) -> bool:
    """Returns whether these calls are refused; with descriptors and addresses that do not exist."""
    return all_refused([(name, (-1, None, None, 0, 0, 0)) for name in sorted(names)])


def cannot_write_into(folders: Iterable[Path]) -> bool:
    """Returns whether no file can be created in any of these directories."""

    def create_file(folder: Path) -> None:
        # The process's number and O_EXCL: two processes can probe one directory, and no existing file is opened.
        path = folder / f".trainer-probe-{os.getpid()}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.suppress(OSError):
            path.unlink()

    return all(
        is_refused(lambda folder=folder: create_file(folder), also={errno.EROFS})  # type: ignore[misc]
        for folder in folders
    )
