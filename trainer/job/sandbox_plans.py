"""The sandbox plans of a job's processes: the account, the paths and the system calls that each one gets.

The rule: no process can read what it does not need, and none can write what another trusts without checking it.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.job.workspace import Workspace
from trainer.sandbox import privileges
from trainer.sandbox.plan import (
    Account,
    Role,
    SandboxPlan,
    gpu_devices,
    gpus,
    is_readable,
    may_pass,
    software_paths,
)
from trainer.spec import JobSpec

FRONT: Final = Account(uid=901, gid=901)
WORKER: Final = Account(uid=902, gid=902)
"""The image's Dockerfile creates these accounts. On another system the numbers must not belong to any user."""

_NAMES: Final = {FRONT.uid: "front", WORKER.uid: "worker"}
_ACCOUNT_CAPABILITIES: Final = frozenset(
    {
        privileges.CAP_CHOWN,
        privileges.CAP_DAC_OVERRIDE,
        privileges.CAP_KILL,
        privileges.CAP_SETGID,
        privileges.CAP_SETUID,
    }
)
_FORBIDDEN_DIRECTORIES: Final = (Path("/var"), Path("/home"))
"""Directories that exist on most systems and that no process needs: each tries to open them, to test Landlock."""


@dataclass(frozen=True)
class JobPaths:
    """Directories of a job.

    Args:
        workspace: the private directory.
        ciphertext: the directory of sealed uploads and results.
        spec_folder: the directory that a local base model's path is relative to.
        by_files: whether `ciphertext` is a spool, where the carrier's other side writes files.
    """

    workspace: Workspace
    ciphertext: Path
    spec_folder: Path
    by_files: bool


@dataclass(frozen=True)
class SandboxPlans:
    """The plan of each process.

    Attributes:
        worker: of the worker of the first try.
        standby: of the workers of the further tries: the same, with the directories of their own try.
        separate_users: whether supervisor, front and worker run as three users.
    """

    supervisor: SandboxPlan
    front: SandboxPlan
    worker: SandboxPlan
    standby: tuple[SandboxPlan, ...]
    fetch: SandboxPlan
    store_sync: SandboxPlan
    separate_users: bool


def make_plans(spec: JobSpec, places: JobPaths) -> SandboxPlans:
    """Returns the plans for a job; where users can be separated, gives each account its directories.

    If they cannot be separated, all processes run as one user: Landlock and seccomp still apply, and the sandbox
    property `separate_users` is attested as false.
    """
    workspace, ciphertext = places.workspace, places.ciphertext
    # Each account must be able to pass through the parent of its directories, whose mode stays as it is.
    separate = (
        can_separate_users()
        and may_pass(workspace.root.parent, WORKER)
        and may_pass(ciphertext.resolve().parent, FRONT)
    )
    if separate:
        _grant_directories(places)
    # The environment can hold what the operator set for the supervisor alone, such as an access token.
    supervisor_environment = Path("/proc") / str(os.getpid()) / "environ"
    forbidden = (
        supervisor_environment,
        *(path for path in _FORBIDDEN_DIRECTORIES if path.is_dir()),
    )
    workers = [
        _worker_plan(spec, workspace.of_try(number), ciphertext, forbidden, separate=separate)
        for number in range(1, workspace.tries + 1)
    ]
    return SandboxPlans(
        supervisor=SandboxPlan(
            role=Role.SUPERVISOR,
            writable=(workspace.root, ciphertext),
            removable=(workspace.root.parent, ciphertext.parent),
            forbidden=forbidden[1:],
        ),
        front=SandboxPlan(
            role=Role.FRONT,
            account=FRONT if separate else None,
            writable=(ciphertext,),
            forbidden=(workspace.root, workspace.dataset, *forbidden),
            hidden=(workspace.root,),
            # A spool's other side is another user, who has to read the sealed result.
            umask=0o022 if places.by_files else privileges.PRIVATE_UMASK,
        ),
        worker=workers[0],
        standby=tuple(workers[1:]),
        fetch=_fetch_plan(spec, places, separate=separate),
        # The sandbox of a process that connects out, and the front's user: both see ciphertext in one directory.
        store_sync=SandboxPlan(
            role=Role.FETCH,
            account=FRONT if separate else None,
            writable=(ciphertext,),
        ),
        separate_users=separate,
    )


def _worker_plan(
    spec: JobSpec,
    workspace: Workspace,
    ciphertext: Path,
    forbidden: tuple[Path, ...],
    *,
    separate: bool,
) -> SandboxPlan:
    """Returns the plan of the worker of one try, which reaches the directories of no other one."""
    return SandboxPlan(
        role=Role.WORKER,
        account=WORKER if separate else None,
        readable=(workspace.model, workspace.dataset),
        writable=(workspace.output, workspace.scratch),
        # Not the ciphertext: a worker that could write there could hand plaintext to the operator.
        forbidden=(workspace.root, workspace.private_log, ciphertext, *forbidden),
        hidden=(workspace.root, ciphertext),
        programs=spec.train.may_compile,  # a compiler is a program
        gpu=bool(gpu_devices()),
        processes=rank_count(spec),
    )


def _fetch_plan(spec: JobSpec, places: JobPaths, *, separate: bool) -> SandboxPlan:
    """Returns the plan of the fetch process.

    A download runs as the worker's user, since the hub's answers are hostile input and this user owns no keys. A
    local model is copied as the current user, who may be the only one that can read it.
    """
    readable: tuple[Path, ...] = ()
    if spec.model.is_local:
        readable = ((places.spec_folder / spec.model.model_name_or_path).resolve(),)
    elif certificate_file := os.environ.get("SSL_CERT_FILE"):
        # The certificate authority of the operator's mirror. Trusting it is safe: every file of the model is
        # checked against the digests in the job spec.
        readable = (Path(certificate_file),)
    return SandboxPlan(
        role=Role.FETCH,
        account=WORKER if separate and not spec.model.is_local else None,
        readable=readable,
        writable=(places.workspace.model,),
        umask=0o027,  # readable for the worker's group, which has no other member
    )


def rank_count(spec: JobSpec) -> int:
    """Returns the number of ranks: the spec's `num_processes`, or one for each GPU."""
    configured = spec.train.num_processes
    return max(1, len(gpus())) if configured == "auto" else configured


def can_separate_users() -> bool:
    """Returns whether this process may switch to both accounts, and both can read the software.

    In a virtual environment below a user's home the accounts could not import Python's modules.
    """
    return (
        os.geteuid() == 0
        and privileges.permitted()
        >= _ACCOUNT_CAPABILITIES  # a container may run as root without them
        and all(map(_is_free, _NAMES))
        and all(
            is_readable(path, FRONT) and is_readable(path, WORKER)
            for path in software_paths()
            if path.exists()
        )
    )


def _is_free(uid: int) -> bool:
    """Returns whether a user number is unused or the image's. Processes of one user can signal each other."""
    try:
        return pwd.getpwuid(uid).pw_name == _NAMES[uid]
    except KeyError:
        return True


def _grant_directories(places: JobPaths) -> None:
    """Gives each account the directories that its process uses. Files created in them inherit the group (setgid).

    Modes are set before owners: chmod needs CAP_FOWNER on another user's directory, and CAP_FSETID to set setgid
    on another group's.
    """
    workspace = places.workspace
    # The worker may pass through the root, but not list it: the private logs lie there.
    _give(workspace.root, 0, 0o710)
    _give(workspace.model, 0, 0o2770)
    _give(workspace.all_tries, 0, 0o710)
    for number in range(1, workspace.tries + 1):
        own = workspace.of_try(number)
        # Closed until its worker begins: without Landlock the one before, of the same user, could write there.
        _give(own.own, 0, 0o710 if number == workspace.number else 0o700)
        # Readable only: a worker must not change the dataset after its manifest was checked.
        _give(own.dataset, 0, 0o2750)
        _give(own.output, WORKER.uid, 0o700)
        _give(own.scratch, WORKER.uid, 0o700)
    # The owner and the rights of others stay: the directory is the operator's.
    places.ciphertext.chmod(places.ciphertext.stat().st_mode | 0o2770)
    os.chown(places.ciphertext, -1, FRONT.gid)


def _give(folder: Path, uid: int, mode: int) -> None:
    folder.chmod(mode)
    os.chown(folder, uid, WORKER.gid)


def open_try(workspace: Workspace) -> None:
    """Lets the worker's group pass to the directories of a further try."""
    workspace.own.chmod(0o710)


def grant_worker_access(folder: Path) -> None:
    """Lets the worker's group read everything that this process created below `folder`.

    The mode of `folder` itself was set when it was given to the group, and stays: a chmod by a process without
    CAP_FSETID clears setgid (chmod(2)), and what is created there afterwards would belong to another group.
    """
    for path in folder.rglob("*"):
        path.chmod(0o750 if path.is_dir() else 0o640)
