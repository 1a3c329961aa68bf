"""Confines a process, in the one order that works, and measures what was achieved.

A network namespace and another user need privileges, so they come before privileges are given up. Landlock and
seccomp need no-new-privileges, so they come after. The seccomp filter is last: it refuses calls that the other
steps make.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer.sandbox import channels, landlock, loopback, mounts, privileges, probes, seccomp
from trainer.sandbox.filters import Filter
from trainer.sandbox.plan import Account, Role, SandboxPlan, is_readable, rules, software_paths
from trainer.sandbox.properties import SandboxProperty, SandboxReport
from trainer.sandbox.syscalls import is_single_threaded

_SUPERVISOR_CAPABILITIES: Final = (privileges.CAP_DAC_OVERRIDE, privileges.CAP_KILL)
"""To end children that are other users, and to read and remove what they wrote."""

_REFUSED_WHILE_SERVING: Final = frozenset({"bind", "connect"})
"""The front accepts connections on sockets that it received, or opened before it was confined."""
_SOCKET_CALLS: Final = _REFUSED_WHILE_SERVING | {"listen", "accept", "accept4"}
_CHILDREN: Final = frozenset({Role.FRONT, Role.WORKER})
_MEASURED_ROLES: Final = frozenset({Role.SUPERVISOR, Role.FRONT, Role.WORKER})


def own_loopback() -> None:
    """Enters a new network namespace that holds `lo` alone, for this process and those it forks from now on.

    Raises:
        OSError: the namespace cannot be created.
    """
    if not privileges.leave_network():
        raise OSError(1, "the network namespace is not this process's own")
    loopback.bring_up()


def confine(plan: SandboxPlan, *, in_own_network: bool = False) -> SandboxReport:
    """Confines this process irrevocably; returns the sandbox properties, each measured from inside.

    What the kernel does not offer is left out and measured as absent. There must be one thread: Landlock and
    capabilities apply to the calling thread and those it makes later, so an earlier thread would stay unconfined.

    Args:
        plan: what the process may do afterwards.
        in_own_network: whether this process, or the one that forked it, has called `own_loopback`.

    Raises:
        RuntimeError: this process has more than one thread.
        OSError: the plan's account, or the network namespace that it requires, cannot be had.
    """
    if not is_single_threaded():
        raise RuntimeError("a process is confined before it makes threads")
    privileges.keep_to_itself()
    os.umask(plan.umask)
    memory_locked = plan.role in {Role.SUPERVISOR, Role.FRONT} and privileges.lock_memory()
    own_network = in_own_network or _leave_network(plan)
    before = probes.places(
        (*plan.forbidden, *plan.hidden, *mounts.SHARED_FOLDERS, *_parent_in_proc())
    )
    own_ipc = plan.role in _CHILDREN and mounts.leave_ipc()
    if plan.role in _CHILDREN:  # measured by what can then be seen
        _leave_mounts(plan)
    # In this order: the bounding set needs CAP_SETPCAP and the user CAP_SETUID, both of which are then dropped.
    retained = _retained_capabilities(plan)
    privileges.empty_bounding_set(retained)
    if plan.account is not None:
        privileges.become(plan.account.uid, plan.account.gid)
    privileges.drop_capabilities(retained)
    # Also for a process without capabilities: a set-user-ID program would give it root's.
    privileges.refuse_new_privileges()
    privileges.keep_to_itself()  # again: the kernel resets the dumpable flag when the user changes
    os.umask(plan.umask)
    # After the change of user, which clears the setting (prctl(2)).
    if plan.role is not Role.SUPERVISOR:
        privileges.end_with_parent()
    landlock.restrict(
        rules(plan),
        signals=plan.role is Role.SUPERVISOR,
        ports=plan.role is Role.FETCH or plan.loopback,
    )
    with suppress(OSError):  # measured as absent
        seccomp.install(_filter_for(plan))
    return _measure(
        plan, before, memory_locked=memory_locked, own_network=own_network, own_ipc=own_ipc
    )


def _leave_mounts(plan: SandboxPlan) -> None:
    """Enters a mount namespace that shows this process its own directories and the software."""
    mounts.leave_mounts(
        plan.hidden,
        [*software_paths(), *plan.readable],
        [*plan.writable, *plan.removable],
        counters=plan.role is Role.WORKER,
        names_threads=plan.gpu,
    )


def _parent_in_proc() -> list[Path]:
    memory = probes.memory_of(os.getppid())
    return [memory.parent, memory]


def _leave_network(plan: SandboxPlan) -> bool:
    """Enters a network namespace of its own, for the roles that need no network; returns whether it did."""
    if plan.role not in {Role.SUPERVISOR, Role.WORKER}:
        return False
    if plan.loopback:
        own_loopback()  # an error ends the process: ranks must not share another network
        return True
    return privileges.leave_network()


def _retained_capabilities(plan: SandboxPlan) -> frozenset[int]:
    """Returns the capabilities that the process retains, by number."""
    retained = frozenset(_SUPERVISOR_CAPABILITIES if plan.role is Role.SUPERVISOR else ())
    if plan.account is not None:
        return retained
    # Without capabilities even root may not read software in a user's home. CAP_DAC_READ_SEARCH reads past mode
    # bits, for such software or a local model; Landlock still limits it to the plan's paths.
    user = Account(uid=os.geteuid(), gid=os.getegid())
    if plan.role is Role.FETCH or not all(
        is_readable(path, user) for path in software_paths() if path.exists()
    ):
        retained |= {privileges.CAP_DAC_READ_SEARCH}
    return retained


def _filter_for(plan: SandboxPlan) -> Filter:
    """Returns the seccomp filter of a role."""
    # A compiler's processes signal one another, under numbers that are not known yet. Landlock or the account has
    # to prevent their signals to other processes.
    pid = os.getpid()
    own_pid = None if plan.programs else pid
    # Not for the front, and not where nothing needs them: a lock on a library can be seen in /proc.
    locks = frozenset() if plan.programs or plan.loopback else frozenset({"flock"})
    match plan.role:
        case Role.SUPERVISOR:
            # It connects to the guest agent's unix socket and stops its children, which needs kill.
            return Filter(
                refused=_SOCKET_CALLS - {"connect"}, families=frozenset({probes.UNIX}), pid=pid
            )
        case Role.FRONT:
            # No new socket and no connect: a front that is taken over cannot send ciphertext or status elsewhere.
            return Filter(
                refused=_REFUSED_WHILE_SERVING | _refused_state(plan.role), own_pid=own_pid, pid=pid
            )
        case Role.FETCH:
            # A client of the hub: it may connect, and the resolver may bind a local port; it accepts nothing.
            return Filter(
                refused=_SOCKET_CALLS - {"connect", "bind"},
                families=frozenset({probes.INET, probes.INET6}),
                own_pid=own_pid,
                pid=pid,
            )
        case Role.WORKER if plan.loopback:
            # gloo and NCCL list the network interfaces; a GPU's driver listens on a unix socket (next case)
            unix = {probes.UNIX} if plan.gpu else set()
            return Filter(
                refused=_refused_state(plan.role) | locks,
                families=frozenset({probes.INET, probes.INET6} | unix),
                unix_kind=probes.PACKETS,
                interfaces=True,
                programs=plan.programs,
                own_pid=own_pid,
                pid=pid,
            )
        case Role.WORKER if plan.gpu:
            # libcuda does not start unless it can bind an abstract socket and listen; accept stays refused
            return Filter(
                refused=(_SOCKET_CALLS - {"bind", "listen"}) | _refused_state(plan.role) | locks,
                families=frozenset({probes.UNIX}),
                unix_kind=probes.PACKETS,
                programs=plan.programs,
                own_pid=own_pid,
                pid=pid,
            )
        case Role.WORKER:
            refused = _SOCKET_CALLS | _refused_state(plan.role) | locks
            return Filter(refused=refused, programs=plan.programs, own_pid=own_pid, pid=pid)


def _measure(
    plan: SandboxPlan,
    before: probes.Places,
    *,
    memory_locked: bool,
    own_network: bool,
    own_ipc: bool,
) -> SandboxReport:
    """Returns the sandbox properties, by attempts where an attempt is possible, not from what was set up."""
    if plan.role not in _MEASURED_ROLES:
        return {}
    parent = os.getppid()
    allowed = frozenset(_SUPERVISOR_CAPABILITIES if plan.role is Role.SUPERVISOR else ())
    # Directories outside the plan in which a process without Landlock could create files.
    foreign = [
        path
        for path in (Path("/"), *mounts.SHARED_FOLDERS)
        if path.is_dir() and path not in plan.writable
    ]
    common = {
        "no_programs": probes.no_programs(),
        "no_tracing": probes.no_tracing(parent, there=before),
        "no_kernel_doors": probes.no_kernel_doors(),
        # No capability beyond the role's, and no way to gain one.
        "no_privileges": privileges.permitted() <= allowed
        and not privileges.may_gain_privileges()
        and probes.no_root(),
        "not_dumpable": not privileges.is_dumpable(),
        "files_confined": probes.cannot_open(plan.forbidden, there=before)
        and probes.cannot_write_into(foreign),
        "no_shared_state": probes.no_shared_state() and probes.no_calls(_refused_state(plan.role)),
    }
    children = {
        "no_signals": probes.no_signals(parent),
        "no_shared_folders": probes.no_shared_folders(_only(before, mounts.SHARED_FOLDERS)),
        "own_mounts": probes.are_hidden(
            _only(before, (*plan.hidden, *mounts.SHARED_FOLDERS, *_parent_in_proc()))
        ),
        "own_ipc": own_ipc,
    }
    match plan.role:
        case Role.SUPERVISOR:
            special = {
                "no_network": probes.no_sockets(probes.OUTSIDE),
                "own_network": own_network,
                "memory_locked": memory_locked,
            }
        case Role.FRONT:
            special = {
                **children,
                "no_outgoing": probes.no_sockets((*probes.OUTSIDE, probes.UNIX)),
                "memory_locked": memory_locked,
            }
        case _:
            special = {
                **children,
                "no_network": _has_no_outside_network(plan, own_network=own_network),
                "own_network": own_network,
            }
    return {
        SandboxProperty(f"{plan.role.value}_{name}"): held
        for name, held in (common | special).items()
    }


def _refused_state(role: Role) -> frozenset[str]:
    """Returns the calls on shared state that are refused to a role whatever their arguments."""
    match role:
        case Role.FRONT:
            return channels.ATTRIBUTES | channels.OBSERVATION
        case Role.WORKER:
            return channels.ATTRIBUTES
        case _:
            return frozenset()


def _only(before: probes.Places, paths: Iterable[Path]) -> probes.Places:
    return {path: before[path] for path in paths if path in before}


def _has_no_outside_network(plan: SandboxPlan, *, own_network: bool) -> bool:
    """Returns whether the worker can reach nothing outside: no socket, or several ranks and loopback alone."""
    if plan.loopback:
        # Ranks need IP sockets and netlink's list of interfaces. What prevents traffic is the namespace, so its
        # interfaces and routes are measured; netlink is tested with another protocol than the permitted one.
        others = set(probes.OUTSIDE) - {probes.INET, probes.INET6, probes.NETLINK}
        return (
            own_network
            and loopback.interfaces() == ["lo"]
            and probes.has_no_route()
            and probes.no_sockets({*others, probes.UNIX})
            and probes.no_sockets({probes.NETLINK}, protocol=probes.NETLINK_AUDIT)
        )
    return probes.no_sockets((*probes.OUTSIDE, probes.UNIX)) and probes.no_connections()
