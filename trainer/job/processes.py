"""The job's processes, started in the one order that lets each give up the right to start another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import ErrorCode, JobError
from trainer.fetch.base_model import Fetch
from trainer.ipc.front_messages import Ready
from trainer.job.fetch_process import start_fetch
from trainer.job.front_process import FrontProcess, front_process
from trainer.job.sandbox_plans import Places, Plans, make_plans
from trainer.job.worker_process import WorkerProcess, worker_process
from trainer.job.workspace import Workspace, is_memory, is_swap_off
from trainer.sandbox.confine import Walls, confine
from trainer.sandbox.privileges import has_no_core_dumps
from trainer.sandbox.properties import SandboxProperty
from trainer.spec import JobSpec

if TYPE_CHECKING:
    from trainer.tee.guest_agent import GuestAgent


@dataclass(frozen=True)
class JobProcesses:
    """Every process there will be, each behind its walls.

    Attributes:
        front: listens.
        worker: waits for its order.
        fetch: brings the base model in.
        ready: where the front listens.
        walls: what each process measured about itself.
        connect: to the guest agent, whose socket is named or in one of its usual places.
    """

    front: FrontProcess
    worker: WorkerProcess
    fetch: Fetch
    ready: Ready
    walls: Walls
    connect: Callable[[str | None], GuestAgent]


@contextmanager
def start_processes(spec: JobSpec, places: Places) -> Iterator[JobProcesses]:
    """Start all processes, confine this one, and collect what each measured; end them with the context.

    Raises:
        JobError: a process did not come up, or did not confine itself.
    """
    plans, workspace = make_plans(spec, places), places.workspace
    with ExitStack() as running:
        fetch = start_fetch(spec, places.spec_folder, workspace, plans.fetch)
        running.callback(fetch.end)
        worker = running.enter_context(worker_process(workspace, plans.worker, spec))
        front = running.enter_context(
            front_process(
                spec.exchange,
                ciphertext=places.ciphertext,
                by_files=places.by_files,
                log=workspace.front_log,
                plan=plans.front,
            )
        )
        own = confine(plans.supervisor)
        fetch.begin()  # not before: from here on this process can start none
        front.listen()
        from trainer.tee.guest_agent import GuestAgent  # noqa: PLC0415 -- takes as long as the front to come up

        ready = front.wait_ready()
        walls = {**_common_walls(workspace, plans), **own, **ready.walls, **worker.wait_confined()}
        yield JobProcesses(front, worker, fetch, ready, walls, GuestAgent)


def _common_walls(workspace: Workspace, plans: Plans) -> Walls:
    return {
        SandboxProperty.CORE_DUMPS_OFF: has_no_core_dumps(),
        SandboxProperty.WORKSPACE_IN_MEMORY: is_memory(workspace.root),
        SandboxProperty.SWAP_OFF: is_swap_off(),
        SandboxProperty.SEPARATE_USERS: plans.separate_users,
    }


def require_sandbox(demanded: Sequence[SandboxProperty], walls: Walls) -> None:
    """End where a job spec demands more than this machine gave.

    Raises:
        JobError: `sandbox-incomplete`.
    """
    missing = [wall.value for wall in demanded if not walls.get(wall, False)]
    if missing:
        raise JobError(
            ErrorCode.SANDBOX_INCOMPLETE,
            "a wall that the job spec demands does not stand",
            expected=", ".join(demanded),
            found=f"all but {', '.join(missing)}",
            hint="see docs/decisions/0004-sandbox.md for what each wall needs of the kernel",
        )
