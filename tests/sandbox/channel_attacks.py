"""Attacks on state that two processes share: what one changes, another sees. See `trainer.sandbox.channels`."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import struct
import sys
import time
from pathlib import Path

from tests.sandbox.attack_tools import Attack, open_path, raw
from trainer.sandbox.syscalls import syscall


def _fcntl(command: int, argument: int | bytes, path: str = sys.executable) -> None:
    """A command on a file that every process may open, as each opens the same libraries."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(descriptor, command, argument)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EBADF, errno.EAGAIN, errno.ESRCH, errno.ENOTDIR}:
            raise
    finally:
        os.close(descriptor)


def _lock(command: int, path: str = sys.executable) -> None:
    _fcntl(command, struct.pack("=hhiqqiI", fcntl.F_RDLCK, os.SEEK_SET, 0, 47, 11, 0, 0), path)


def _flock(path: str = sys.executable) -> None:
    with Path(path).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _wake_on_a_shared_page() -> None:
    """Of a file mapped read-only: who waits at this place in another process is counted."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    with Path(sys.executable).open("rb") as file:
        address = libc.mmap(None, ctypes.c_long(4096), 1, 1, file.fileno(), ctypes.c_long(0))
    if libc.syscall(ctypes.c_long(202), ctypes.c_void_p(address), 1, 1, None, None, 0) < 0:
        raise OSError(ctypes.get_errno(), "futex")


def _signal_by_the_kernel(command: int, argument: int | bytes) -> None:
    """A pipe whose next byte has the kernel signal another process."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(reading, command, argument)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return
        raise
    finally:
        os.close(reading)
        os.close(writing)


def _own_ioctl(request: int, value: int) -> None:
    reading, writing = os.pipe()
    try:
        fcntl.ioctl(reading, request, struct.pack("=i", value))
    except OSError as error:
        if error.errno not in {errno.ENOTTY, errno.EINVAL, errno.ESRCH}:
            raise
    finally:
        os.close(reading)
        os.close(writing)


def _change_attributes(path: str) -> None:
    """Times of a file that is there to be seen from elsewhere: its own one, as the owner of more it could."""
    os.utime(path, ns=(1, 2))


NOTE = f"trainer-attack-{os.getpid()}"


def _note(path: str) -> None:
    """A file that stays, for others to find; `was_found` looks for it."""
    open_path(f"{path}/{NOTE}", os.O_WRONLY | os.O_CREAT)


def was_found(pid: int, attack: str) -> bool:
    """Whether another process sees the file of an attack in `BY_FOLDER` by process `pid`; removes it."""
    note = Path(NOTES[attack]) / f"trainer-attack-{pid}"
    try:
        note.unlink()
    except FileNotFoundError:
        return False
    return True


def _clock_of(pid: int) -> None:
    time.clock_gettime(~pid << 3 | 2)


SHARED: dict[str, Attack] = {
    "sysv_memory": raw("shmget", 0, 4096, 0o600 | 0o1000),
    "sysv_queue": raw("msgget", 4711, 0o666 | 0o1000),
    "sysv_semaphore": raw("semget", 4711, 1, 0o666 | 0o1000),
    "sysv_attach": raw("shmat", -1, None, 0),
    "sysv_look": raw("msgctl", 0, 12, None),
    "posix_queue": raw("mq_open", b"trainer-attack", os.O_RDWR | os.O_CREAT, 0o666, None),
    "posix_queue_send": raw("mq_timedsend", -1, None, 0, 0, None),
    "watch_a_library": raw("inotify_init1", 0),
    "watch_a_directory": lambda t: _fcntl(fcntl.F_NOTIFY, fcntl.DN_ACCESS, "/usr/lib"),
    "lease": lambda t: _fcntl(fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "lock_a_library": lambda t: _lock(fcntl.F_SETLK),
    "look_at_a_lock": lambda t: _lock(fcntl.F_GETLK),
    "lock_a_library_by_its_description": lambda t: _lock(37),
    "look_at_a_lock_by_its_description": lambda t: _lock(36),
    "flock_a_library": lambda t: _flock(),
    "write_hint": lambda t: _fcntl(1036, struct.pack("=Q", 2)),
    "futex_on_a_library": lambda t: _wake_on_a_shared_page(),
    "futex2_wake": raw("futex_wake", None, 1, 1, 0),
    "signal_by_owner": lambda t: _signal_by_the_kernel(fcntl.F_SETOWN, t.supervisor),
    "signal_by_owner_ex": lambda t: _signal_by_the_kernel(15, struct.pack("=ii", 1, t.supervisor)),
    "signal_number_of_choice": lambda t: _signal_by_the_kernel(fcntl.F_SETSIG, signal.SIGKILL),
    "signal_by_ioctl": lambda t: _own_ioctl(0x8901, t.supervisor),
    "signal_by_socket_ioctl": lambda t: _own_ioctl(0x8902, t.supervisor),
    "unlock_a_terminal": lambda t: _own_ioctl(0x40045431, 0),
    "priority_of_others": lambda t: os.setpriority(os.PRIO_PROCESS, t.supervisor, 0),
    "priority_of_the_user": lambda t: os.setpriority(
        os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, 0)
    ),
    "see_the_users_priority": lambda t: os.getpriority(os.PRIO_USER, 0),
    "see_anothers_priority": lambda t: os.getpriority(os.PRIO_PROCESS, t.supervisor),
    "see_anothers_cpus": lambda t: os.sched_getaffinity(t.supervisor),
    "cpus_of_others": lambda t: os.sched_setaffinity(t.supervisor, os.sched_getaffinity(0)),
    "limits_of_others": lambda t: resource.prlimit(t.supervisor, resource.RLIMIT_CPU),
    "see_anothers_scheduler": lambda t: os.sched_getscheduler(t.supervisor),
    "see_anothers_group": lambda t: os.getpgid(t.supervisor),
    "see_anothers_session": lambda t: os.getsid(t.supervisor),
    "see_anothers_input_priority": lambda t: syscall("ioprio_get", 1, t.supervisor),
    "see_anothers_time": lambda t: _clock_of(t.supervisor),
    "move_anothers_pages": lambda t: syscall("move_pages", t.supervisor, 0, None, None, None, 0),
    "legacy_asynchronous_io": raw("io_setup", 0, None),
}
"""State of the kernel that one process changes and another reads."""
OF_CHILDREN: dict[str, Attack] = {
    "mode_of_a_file": raw("chmod", None, 0),
    "mode_by_descriptor": raw("fchmod", -1, 0),
    "mode_in_a_directory": raw("fchmodat", -1, b"x", 0),
    "newer_mode": raw("fchmodat2", -1, b"x", 0, 0),
    "owner_of_a_file": raw("chown", None, -1, -1),
    "times_of_a_file": lambda t: _change_attributes(f"{t.open_folder}/world-writable"),
    "times_by_descriptor": raw("utimensat", -1, None, None, 0),
    "attribute_of_a_file": raw("setxattr", None, None, None, 0, 0),
    "attribute_by_descriptor": raw("fsetxattr", -1, None, None, 0, 0),
    "attribute_in_a_directory": raw("setxattrat", -1, None, 0, None, None, 0),
    "flags_of_a_file": lambda t: _own_ioctl(0x40086602, 0),
}
"""What an owner may change of a file that it can name, and anybody may see who can name it."""
NOTES = {
    "write_to_tmp": "/tmp",
    "write_to_shared_memory": "/dev/shm",
    "write_to_var_tmp": "/var/tmp",
}
BY_FOLDER: dict[str, Attack] = {
    name: lambda t, folder=folder: _note(folder)  # type: ignore[misc]
    for name, folder in NOTES.items()
}
"""Directories that every user may write to."""
BY_PROC: dict[str, Attack] = {
    "read_anothers_command_line": lambda t: open_path(f"/proc/{t.supervisor}/cmdline"),
    "read_anothers_name": lambda t: open_path(f"/proc/{t.supervisor}/comm"),
    "read_anothers_status": lambda t: open_path(f"/proc/{t.supervisor}/status"),
    "read_all_locks": lambda t: open_path("/proc/locks"),
    "read_a_token_of_init": lambda t: open_path(f"/proc/{t.init}/environ"),
    "read_system_v": lambda t: open_path("/proc/sysvipc/shm"),
}
"""What /proc says about other processes."""
OBSERVED: dict[str, Attack] = {
    "room_of_a_file_system": lambda t: os.statvfs("/dev/shm"),
    "free_memory": raw("sysinfo", None),
    "cached_pages": raw("mincore", 1, 0, None),
    "cached_range": raw("cachestat", -1, None, None, 0),
    "read_if_cached": raw("preadv2", -1, None, 0, 0, 0, 8),
    "which_processes_exist": lambda t: os.close(os.pidfd_open(t.supervisor)),
    "counters_of_memory": lambda t: open_path("/proc/meminfo"),
    "counters_of_processors": lambda t: open_path("/proc/stat"),
    "names_of_sockets": lambda t: open_path("/proc/self/net/unix"),
}
"""What the one process that a stranger can talk to would see of the others."""
