"""Names of the walls, as the claims, `tee.sandbox` of a job spec and the `sandbox` list of a policy use them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field


class SandboxProperty(StrEnum):
    """What can be true of a job's containment. Each is measured inside the process that it is about."""

    CORE_DUMPS_OFF = "core_dumps_off"
    """None of the three processes can leave a core dump."""
    WORKSPACE_IN_MEMORY = "workspace_in_memory"
    """The private directory is a tmpfs."""
    SWAP_OFF = "swap_off"
    """The kernel has nowhere to swap memory to."""
    SEPARATE_USERS = "separate_users"
    """Supervisor, front and worker are three users."""

    SUPERVISOR_NO_NETWORK = "supervisor_no_network"
    """It gets no socket but unix ones."""
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
    SUPERVISOR_OWN_NETWORK = "supervisor_own_network"
    """It lives in a network namespace without interfaces."""

    FRONT_NO_OUTGOING = "front_no_outgoing"
    """It can open no connection and no further socket, unix sockets included."""
    FRONT_NO_PROGRAMS = "front_no_programs"
    """It can start no process and run no other program."""
    FRONT_NO_TRACING = "front_no_tracing"
    """It can neither trace another process nor read its memory."""
    FRONT_NO_SIGNALS = "front_no_signals"
    """It can signal nobody but itself."""
    FRONT_NO_KERNEL_DOORS = "front_no_kernel_doors"
    """As the supervisor's."""
    FRONT_NO_PRIVILEGES = "front_no_privileges"
    """It holds no capability and can gain none."""
    FRONT_NOT_DUMPABLE = "front_not_dumpable"
    """As the supervisor's."""
    FRONT_FILES_CONFINED = "front_files_confined"
    """It reads and writes nothing of the job but the ciphertext directory (Landlock)."""
    FRONT_MEMORY_LOCKED = "front_memory_locked"
    """Its memory, where the TLS key is, cannot be swapped out."""

    WORKER_NO_NETWORK = "worker_no_network"
    """It gets no socket of any kind; several that train together: none but in a network that leads nowhere."""
    WORKER_NO_PROGRAMS = "worker_no_programs"
    """It can start no process and run no other program; false where the job spec needs a compiler."""
    WORKER_NO_TRACING = "worker_no_tracing"
    """It can neither trace another process nor read its memory."""
    WORKER_NO_SIGNALS = "worker_no_signals"
    """It can signal neither the supervisor nor anyone else outside."""
    WORKER_NO_KERNEL_DOORS = "worker_no_kernel_doors"
    """As the supervisor's."""
    WORKER_NO_PRIVILEGES = "worker_no_privileges"
    """It holds no capability and can gain none."""
    WORKER_NOT_DUMPABLE = "worker_not_dumpable"
    """As the supervisor's."""
    WORKER_FILES_CONFINED = "worker_files_confined"
    """It reads the model, the dataset and the software, and writes its own directories only (Landlock)."""
    WORKER_OWN_NETWORK = "worker_own_network"
    """It lives in a network namespace without interfaces; several that train together: with `lo` alone."""


SandboxReport = dict[Annotated[SandboxProperty, Field(strict=False)], bool]
"""What a process measured about itself, as it tells the supervisor."""

NEEDS_NO_COMPILER: Final = frozenset({SandboxProperty.WORKER_NO_PROGRAMS, SandboxProperty.WORKER_NO_SIGNALS})
"""Walls that a job whose kernels are compiled at run time cannot have by seccomp alone.

Its processes signal one another; that they signal nobody else needs Landlock or another user.
"""

EXPECTED: Final = frozenset(
    {SandboxProperty.CORE_DUMPS_OFF, SandboxProperty.WORKSPACE_IN_MEMORY}
    | {
        wall
        for wall in SandboxProperty
        if wall.endswith(
            (
                "_no_network",
                "_no_outgoing",
                "_no_programs",
                "_no_tracing",
                "_no_signals",
                "_no_kernel_doors",
                "_no_privileges",
                "_not_dumpable",
            )
        )
    }
)
"""Walls that need seccomp and nothing else of the kernel, whatever the container's user: every job can have them.

The others depend on what the VM offers: Landlock in its kernel, the right to switch users or to lock memory.
"""
