"""Sandbox plans: what each process may do. The supervisor makes one for each process, itself included."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from trainer.models import Strict
from trainer.sandbox import landlock
from trainer.sandbox.landlock import PathRule

MAX_PROCESSES: Final = 64
"""Largest number of ranks; the largest machines have 16 GPUs."""

_Paths = tuple[Path, ...]
_Id = Annotated[int, Field(ge=0, le=2**32 - 2)]


class Role(StrEnum):
    """The processes of a job. `FETCH` brings the base model in and ends before there is anything to protect."""

    SUPERVISOR = "supervisor"
    FRONT = "front"
    WORKER = "worker"
    FETCH = "fetch"


class Account(Strict):
    """User and group to run as, by number."""

    uid: _Id
    gid: _Id


class SandboxPlan(Strict):
    """The permissions of one process, and the paths that it has to test that it cannot open.

    Attributes:
        role: which process.
        account: user and group to change to; None keeps the current ones.
        readable: files and directories of the job that it reads.
        writable: directories that it writes.
        removable: directories whose empty subdirectories it may remove.
        forbidden: paths that it must not be able to open; it tries after it has confined itself.
        hidden: directories of other processes, which its own mount namespace covers.
        programs: whether it may run programs, which a compiler needs.
        gpu: whether it computes on a GPU; its driver listens on a unix socket and names its threads.
        processes: number of ranks; more than one share a network namespace that holds loopback alone.
        umask: for the files that it creates.
    """

    role: Role
    account: Account | None = None
    readable: _Paths = ()
    writable: _Paths = ()
    removable: _Paths = ()
    forbidden: _Paths = ()
    hidden: _Paths = ()
    programs: bool = False
    gpu: bool = False
    processes: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] = 1
    umask: Annotated[int, Field(ge=0, le=0o777)] = 0o077

    @property
    def loopback(self) -> bool:
        """Whether it may use sockets, in a network namespace with loopback alone."""
        return self.processes > 1


_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SETTINGS: Final = tuple(
    f"/etc/{name}"
    for name in (
        "alternatives", "crypto-policies", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
        "nsswitch.conf", "os-release", "passwd", "ssl", "timezone",
    )
)  # fmt: skip
_NAME_SERVICE: Final = tuple(
    f"/etc/{name}"
    for name in ("gai.conf", "host.conf", "hosts", "resolv.conf", "services", "protocols")
)
_KERNEL: Final = tuple(
    f"/proc/{name}"
    for name in (
        "cpuinfo", "devices", "driver", "filesystems", "loadavg", "meminfo", "modules", "self", "stat", "swaps",
        "sys/kernel", "sys/vm", "uptime", "version",
    )
) + tuple(f"/sys/{name}" for name in ("bus", "class", "devices", "fs/cgroup", "kernel/mm", "module"))  # fmt: skip
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LIBRARIES: Final = frozenset({"site-packages", "dist-packages"})
_GPUS: Final = ("/dev/nvidia*", "/dev/nvidia-caps")


def rules(plan: SandboxPlan) -> Iterator[PathRule]:
    """Yields the Landlock rules of a plan."""
    # Rules only add rights, so a path below a readable one can be made writable, but not the reverse.
    software = landlock.RUN if plan.programs else landlock.READ
    for path in software_paths():
        yield PathRule(path, software)
    # Not for the front: counters of the machine's load and memory would tell a stranger what the worker does.
    kernel = () if plan.role is Role.FRONT else _KERNEL
    for name in (*_SETTINGS, *kernel, *(_NAME_SERVICE if plan.role is Role.FETCH else ())):
        yield PathRule(Path(name), landlock.READ)
    for name in (
        *_DEVICES,
        *(gpu_devices() if plan.role in {Role.WORKER, Role.SUPERVISOR} else ()),
    ):
        yield PathRule(Path(name), landlock.DEVICE)
    if plan.gpu:  # the driver writes the names of its threads here
        yield PathRule(Path("/proc/self/task"), landlock.NAME)
    yield from (PathRule(path, landlock.READ) for path in plan.readable)
    yield from (PathRule(path, landlock.WRITE) for path in plan.writable)
    yield from (PathRule(path, landlock.REMOVE) for path in plan.removable)


def software_paths() -> list[Path]:
    """Returns the directories of the system's libraries, of this Python, and of its packages.

    Other entries of the import path, such as a working directory that the operator mounts, are left out.
    """
    python = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    packages = [entry for entry in sys.path if Path(entry).name in _LIBRARIES]
    package = str(Path(__file__).parents[1])
    return [Path(name) for name in dict.fromkeys([*_SYSTEM, *python, *packages, package])]


def is_readable(path: Path, account: Account) -> bool:
    """Returns whether the mode bits let a user without capabilities reach `path` and read it."""
    real = path.resolve()
    return _may(real, account, 0o4) and may_pass(real.parent, account)


def may_pass(folder: Path, account: Account) -> bool:
    """Returns whether the mode bits let a user pass through `folder`, an absolute path without links."""
    return all(_may(passed, account, 0o1) for passed in (folder, *folder.parents))


def _may(path: Path, account: Account, bit: int) -> bool:
    """Returns whether `path` grants the account `bit`: 4 to read, 1 to pass (path_resolution(7)).

    The first class that applies decides: an owner without the bit is refused, even if the group or others have it.
    """
    status = path.stat()
    if status.st_uid == account.uid:
        bit <<= 6
    elif status.st_gid == account.gid:
        bit <<= 3
    return bool(status.st_mode & bit)


def gpus() -> list[str]:
    """Returns the device file of each GPU."""
    return glob.glob("/dev/nvidia[0-9]*")  # noqa: PTH207 -- from the root


def gpu_devices() -> list[str]:
    """Returns all device files of the GPUs; the worker computes on them, the supervisor requests reports."""
    return [name for pattern in _GPUS for name in glob.glob(pattern)]  # noqa: PTH207 -- from the root
