"""Names of the sandbox properties, as claims, `tee.sandbox` of a job spec and `sandbox` of a policy use them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field


class SandboxProperty(StrEnum):
    """A fact about a job's sandbox. Each is measured inside the process that it is about."""

    CORE_DUMPS_OFF = "core_dumps_off"
    """None of the three processes can leave a core dump."""
    WORKSPACE_IN_MEMORY = "workspace_in_memory"
    """The private directory is a tmpfs."""
    SWAP_OFF = "swap_off"
    """The kernel has no swap device."""
    SEPARATE_USERS = "separate_users"
    """Supervisor, front and worker are three users."""

    SUPERVISOR_NO_NETWORK = "supervisor_no_network"
    """It can create unix sockets only."""
    SUPERVISOR_NO_PROGRAMS = "supervisor_no_programs"
    """It can start no process and run no other program."""
    SUPERVISOR_NO_TRACING = "supervisor_no_tracing"
    """It can neither trace another process nor read its memory."""
    SUPERVISOR_NO_KERNEL_DOORS = "supervisor_no_kernel_doors"
    """Mounts, namespaces, modules, bpf, perf, keys, io_uring, device nodes and the like are refused."""
    SUPERVISOR_NO_PRIVILEGES = "supervisor_no_privileges"
    """It can gain no privilege, and holds at most those that end its children and read what they wrote."""
    SUPERVISOR_NOT_DUMPABLE = "supervisor_not_dumpable"
    """Its memory, environment and descriptors are closed to other processes of its user."""
    SUPERVISOR_FILES_CONFINED = "supervisor_files_confined"
    """It writes to the workspace and the ciphertext directory only (Landlock)."""
    SUPERVISOR_MEMORY_LOCKED = "supervisor_memory_locked"
    """Its memory, where the keys are, cannot be swapped out."""
    SUPERVISOR_NO_SHARED_STATE = "supervisor_no_shared_state"
    """No call reaches another process by kernel state: System V and POSIX objects, locks, futexes, settings."""
    SUPERVISOR_OWN_NETWORK = "supervisor_own_network"
    """It runs in a network namespace without interfaces."""

    FRONT_NO_OUTGOING = "front_no_outgoing"
    """It can open no connection and no further socket, unix sockets included."""
    FRONT_NO_PROGRAMS = "front_no_programs"
    """It can start no process and run no other program."""
    FRONT_NO_TRACING = "front_no_tracing"
    """It can neither trace another process nor read its memory."""
    FRONT_NO_SIGNALS = "front_no_signals"
    """It can signal no process but itself."""
    FRONT_NO_KERNEL_DOORS = "front_no_kernel_doors"
    """The same as the supervisor's property."""
    FRONT_NO_PRIVILEGES = "front_no_privileges"
    """It holds no capability and can gain none."""
    FRONT_NOT_DUMPABLE = "front_not_dumpable"
    """The same as the supervisor's property."""
    FRONT_FILES_CONFINED = "front_files_confined"
    """Of the job's files, it reads and writes the ciphertext directory only (Landlock)."""
    FRONT_NO_SHARED_STATE = "front_no_shared_state"
    """The same as the supervisor's property; nor can it set files' attributes, or see locks."""
    FRONT_NO_SHARED_FOLDERS = "front_no_shared_folders"
    """It cannot create a file in /tmp, /var/tmp, /dev/shm or /dev/mqueue, or they are its own."""
    FRONT_OWN_MOUNTS = "front_own_mounts"
    """Its mount namespace shows neither these directories, nor other processes' directories, nor them in /proc."""
    FRONT_OWN_IPC = "front_own_ipc"
    """It runs in an IPC namespace of its own."""
    FRONT_MEMORY_LOCKED = "front_memory_locked"
    """Its memory, where the TLS key is, cannot be swapped out."""

    WORKER_NO_NETWORK = "worker_no_network"
    """It can create no socket; several ranks: only in a network namespace without a route out of it."""
    WORKER_NO_PROGRAMS = "worker_no_programs"
    """It can start no process and run no other program; false where the job spec needs a compiler."""
    WORKER_NO_TRACING = "worker_no_tracing"
    """It can neither trace another process nor read its memory."""
    WORKER_NO_SIGNALS = "worker_no_signals"
    """It can signal no process but its own."""
    WORKER_NO_KERNEL_DOORS = "worker_no_kernel_doors"
    """The same as the supervisor's property."""
    WORKER_NO_PRIVILEGES = "worker_no_privileges"
    """It holds no capability and can gain none."""
    WORKER_NOT_DUMPABLE = "worker_not_dumpable"
    """The same as the supervisor's property."""
    WORKER_FILES_CONFINED = "worker_files_confined"
    """It reads the model, the dataset and the software, and writes its own directories only (Landlock)."""
    WORKER_NO_SHARED_STATE = "worker_no_shared_state"
    """The same as the supervisor's property; nor can it set files' attributes."""
    WORKER_NO_SHARED_FOLDERS = "worker_no_shared_folders"
    """It cannot create a file in /tmp, /var/tmp, /dev/shm or /dev/mqueue, or they are its own."""
    WORKER_OWN_MOUNTS = "worker_own_mounts"
    """Its mount namespace shows neither these directories, nor other processes' directories, nor them in /proc."""
    WORKER_OWN_IPC = "worker_own_ipc"
    """It runs in an IPC namespace of its own."""
    WORKER_OWN_NETWORK = "worker_own_network"
    """It runs in a network namespace without interfaces; several ranks: with `lo` alone."""


SandboxReport = dict[Annotated[SandboxProperty, Field(strict=False)], bool]
"""Property → whether it holds, as a process measured it about itself."""

NEEDS_NO_COMPILER: Final = frozenset(
    {SandboxProperty.WORKER_NO_PROGRAMS, SandboxProperty.WORKER_NO_SIGNALS}
)
"""Properties that seccomp alone cannot give a job whose kernels are compiled at run time.

The compiler's processes signal one another; that they signal no other process needs Landlock or another user.
"""

EXPECTED: Final = frozenset(
    {SandboxProperty.CORE_DUMPS_OFF, SandboxProperty.WORKSPACE_IN_MEMORY}
    | {
        name
        for name in SandboxProperty
        if name.endswith(
            (
                "_no_network",
                "_no_outgoing",
                "_no_programs",
                "_no_tracing",
                "_no_signals",
                "_no_kernel_doors",
                "_no_shared_state",
                "_no_privileges",
                "_not_dumpable",
            )
        )
    }
)
"""Properties that need only seccomp of the kernel, whatever the container's user: every job can have them.

The others depend on the VM: Landlock in its kernel, the right to switch users or to lock memory.
"""
