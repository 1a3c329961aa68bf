"""What each process of the job is confined to, and whom it runs as."""

from __future__ import annotations

import importlib.util
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
from trainer.spec import Engine, JobSpec

FRONT: Final = Account(uid=901, gid=901)
WORKER: Final = Account(uid=902, gid=902)
"""The image's Dockerfile makes these accounts; elsewhere the numbers have to be nobody's."""

_NAMES: Final = {FRONT.uid: "front", WORKER.uid: "worker"}
_NEEDED: Final = frozenset(
    {
        privileges.CAP_CHOWN,
        privileges.CAP_DAC_OVERRIDE,
        privileges.CAP_KILL,
        privileges.CAP_SETGID,
        privileges.CAP_SETUID,
    }
)
_OUTSIDE: Final = (Path("/var"), Path("/home"))
"""Directories of every system in which nothing of a job lies but what a plan names."""


@dataclass(frozen=True)
class JobPaths:
    """Where a job's files lie.

    Args:
        workspace: the private directory.
        ciphertext: sealed uploads and results.
        spec_folder: what a local base model's path is relative to.
        by_files: whether `ciphertext` is also where strangers put their files.
    """

    workspace: Workspace
    ciphertext: Path
    spec_folder: Path
    by_files: bool


@dataclass(frozen=True)
class SandboxPlans:
    """One plan for each process. `separate_users` is whether they are three users."""

    supervisor: SandboxPlan
    front: SandboxPlan
    worker: SandboxPlan
    fetch: SandboxPlan
    separate_users: bool


def make_plans(spec: JobSpec, places: JobPaths) -> SandboxPlans:
    """SandboxPlans for a job; where users can be separated, directories are handed to them."""
    workspace, ciphertext = places.workspace, places.ciphertext
    separate = can_separate_users() and _can_be_handed_over(places)
    if separate:
        _hand_over(places)
    supervisor_environment = Path("/proc") / str(os.getpid()) / "environ"
    outside = tuple(path for path in _OUTSIDE if path.is_dir())
    return SandboxPlans(
        supervisor=SandboxPlan(
            role=Role.SUPERVISOR,
            writable=(workspace.root, ciphertext),
            removable=(workspace.root.parent, ciphertext.parent),
            forbidden=outside,
        ),
        front=SandboxPlan(
            role=Role.FRONT,
            account=FRONT if separate else None,
            writable=(ciphertext,),
            forbidden=(workspace.root, workspace.dataset, supervisor_environment, *outside),
            umask=0o022 if places.by_files else privileges.PRIVATE_UMASK,
        ),
        worker=SandboxPlan(
            role=Role.WORKER,
            account=WORKER if separate else None,
            readable=(workspace.model, workspace.dataset),
            writable=(workspace.output, workspace.scratch),
            forbidden=(workspace.root, workspace.private_log, ciphertext, supervisor_environment, *outside),
            programs=needs_compiler(spec),
            gpu=bool(gpu_devices()),
            processes=processes(spec),
        ),
        fetch=_fetch_plan(spec, places, separate=separate),
        separate_users=separate,
    )


def _fetch_plan(spec: JobSpec, places: JobPaths, *, separate: bool) -> SandboxPlan:
    """A hub is fetched from as the worker's user; a local directory may be readable to this user alone."""
    local = (places.spec_folder / spec.model.model_name_or_path).resolve()
    return SandboxPlan(
        role=Role.FETCH,
        account=WORKER if separate and not spec.model.is_local else None,
        readable=(local,) if spec.model.is_local else _certificates(),
        writable=(places.workspace.model,),
        umask=0o027,  # of a group that is the worker's alone
    )


def _certificates() -> tuple[Path, ...]:
    """A mirror's certificate authority, where the operator named one."""
    named = os.environ.get("SSL_CERT_FILE")
    return (Path(named),) if named else ()


def processes(spec: JobSpec) -> int:
    """How many processes train together: as the spec says, or one for each GPU."""
    wanted = spec.train.num_processes
    return max(1, len(gpus())) if wanted == "auto" else wanted


def needs_compiler(spec: JobSpec) -> bool:
    """Whether the worker will compile kernels: it is asked to, or takes unsloth, as `auto` does where it is."""
    if spec.train.torch_compile:
        return True
    if spec.train.engine is Engine.AUTO and processes(spec) == 1:
        return importlib.util.find_spec("unsloth") is not None
    return spec.train.engine is Engine.UNSLOTH


def can_separate_users() -> bool:
    """Whether this process may switch to the two accounts, and these can read the software they run."""
    return (
        os.geteuid() == 0
        and privileges.permitted() >= _NEEDED
        and all(map(_is_free, _NAMES))
        and all(
            is_readable(path, FRONT) and is_readable(path, WORKER) for path in software_paths() if path.exists()
        )
    )


def _is_free(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name == _NAMES[uid]
    except KeyError:
        return True


def _can_be_handed_over(places: JobPaths) -> bool:
    """Whether each account can walk to its directories; theirs are opened to them, what lies above is not ours."""
    above = (places.workspace.root.parent, WORKER), (places.ciphertext.resolve().parent, FRONT)
    return all(may_pass(folder, account) for folder, account in above)


def _hand_over(places: JobPaths) -> None:
    """Give each account the directories that its process works in; new files below inherit the group.

    Modes first, while all of it is ours: on another user's directory they take CAP_FOWNER, on another group's
    CAP_FSETID.
    """
    workspace = places.workspace
    for folder, uid, mode in (
        (workspace.root, 0, 0o710),
        (workspace.dataset, 0, 0o2750),
        (workspace.model, 0, 0o2770),
        (workspace.output, WORKER.uid, 0o700),
        (workspace.scratch, WORKER.uid, 0o700),
    ):
        folder.chmod(mode)
        os.chown(folder, uid, WORKER.gid)
    places.ciphertext.chmod(places.ciphertext.stat().st_mode | 0o2770)
    os.chown(places.ciphertext, -1, FRONT.gid)


def grant_worker_access(folder: Path) -> None:
    """Let the group of a directory, which the worker's user is alone in, read what this process put into it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o750 if path.is_dir() else 0o640)
