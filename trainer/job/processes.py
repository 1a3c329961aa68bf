"""Starts the job's processes in the one order in which each can give up the right to start another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from trainer.errors import ErrorCode, JobError
from trainer.ipc.front_messages import Ready
from trainer.job.fetch_process import FetchProcess, start_fetch
from trainer.job.front_process import FrontProcess, front_process
from trainer.job.sandbox_plans import JobPaths, make_plans
from trainer.job.store_sync_process import store_sync_process
from trainer.job.worker_process import StandbyWorker, WorkerProcess, standby_worker, worker_process
from trainer.job.workspace import is_memory, is_swap_off
from trainer.sandbox.confine import confine
from trainer.sandbox.plan import Role
from trainer.sandbox.privileges import has_no_core_dumps
from trainer.sandbox.properties import SandboxProperty, SandboxReport
from trainer.spec import JobSpec

if TYPE_CHECKING:
    from trainer.tee.guest_agent import GuestAgent


@dataclass(frozen=True)
class JobProcesses:
    """All child processes of the job, each confined.

    Attributes:
        front: the front, which serves.
        worker: the worker of the first try, which waits for its order.
        standby: the workers of the further tries, in their order.
        fetch: the fetch process, which downloads the base model.
        ready: the front's port and TLS key.
        sandbox: the sandbox properties that each process measured about itself.
        connect: path of the guest agent's socket, or None for its usual places → the connected guest agent.
    """

    front: FrontProcess
    worker: WorkerProcess
    standby: Sequence[StandbyWorker]
    fetch: FetchProcess
    ready: Ready
    sandbox: SandboxReport
    connect: Callable[[str | None], GuestAgent]

    def end_before_destruction(self) -> None:
        """Ends the processes that write into the workspace, for a start that trains nothing."""
        self.fetch.end()
        self.worker.end()

    def begin_worker(self, number: int) -> WorkerProcess:
        """Returns the worker of a further try, confined as the attested one was; it loads the base model again.

        Args:
            number: of the try, from 2.

        Raises:
            JobError: `sandbox-incomplete`: it lacks a property that the claims state; or it sent no report.
        """
        worker = self.standby[number - 2].begin()
        attested = [name for name, holds in self.sandbox.items() if holds]
        require_sandbox(
            [name for name in attested if name.startswith(f"{Role.WORKER.value}_")],
            worker.wait_confined(),
        )
        worker.announce_model()
        return worker


@contextmanager
def start_processes(
    spec: JobSpec,
    paths: JobPaths,
    *,
    hub_token: str | None = None,
    store_variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[JobProcesses]:
    """Starts the children, confines this process, and collects what each measured; ends them with the context.

    Raises:
        JobError: a process did not start, or did not confine itself.
    """
    plans, workspace = make_plans(spec, paths), paths.workspace
    with ExitStack() as running:
        fetch = start_fetch(spec, paths.spec_folder, workspace, plans.fetch, hub_token=hub_token)
        running.callback(fetch.end)
        worker = running.enter_context(worker_process(workspace, plans.worker, spec))
        standby = [
            running.enter_context(standby_worker(workspace.of_try(number), plan, spec))
            for number, plan in enumerate(plans.standby, 2)
        ]
        # Before the front, and so ended after it: the last files of the front have to reach the store.
        sync = running.enter_context(
            store_sync_process(
                spec.exchange,
                store_variables,
                spool=paths.ciphertext,
                log=workspace.private_log,
                plan=plans.store_sync,
            )
        )
        front = running.enter_context(
            front_process(
                spec.exchange,
                ciphertext=paths.ciphertext,
                by_files=paths.by_files,
                log=workspace.front_log,
                plan=plans.front,
            )
        )
        # All children exist: from here on this process can start no other. Only then may bytes that strangers
        # choose arrive, from the hub or the network.
        supervisor_sandbox = confine(plans.supervisor)
        fetch.begin()
        front.start_listening()
        if sync is not None:
            sync.begin(partial(front.report_end, ErrorCode.STORE_SYNC_DIED))
            sync.wait_ready()
        from trainer.tee.guest_agent import GuestAgent  # noqa: PLC0415 -- takes as long as the front to come up

        ready = front.wait_ready()
        sandbox = {
            # These belong to no single process: the supervisor measures them for the job.
            SandboxProperty.CORE_DUMPS_OFF: has_no_core_dumps(),
            SandboxProperty.WORKSPACE_IN_MEMORY: is_memory(workspace.root),
            SandboxProperty.SWAP_OFF: is_swap_off(),
            SandboxProperty.SEPARATE_USERS: plans.separate_users,
            **supervisor_sandbox,
            **_properties_of(Role.FRONT, ready.sandbox),
            **_properties_of(Role.WORKER, worker.wait_confined()),
        }
        yield JobProcesses(front, worker, standby, fetch, ready, sandbox, GuestAgent)


def _properties_of(role: Role, report: SandboxReport) -> SandboxReport:
    """Returns what a child reports about itself: it must not report for the supervisor or for another child."""
    return {name: holds for name, holds in report.items() if name.startswith(f"{role.value}_")}


def require_sandbox(demanded: Sequence[SandboxProperty], sandbox: SandboxReport) -> None:
    """Checks that the sandbox has every property that is demanded.

    Raises:
        JobError: `sandbox-incomplete`.
    """
    missing = [name.value for name in demanded if not sandbox.get(name, False)]
    if missing:
        raise JobError(
            ErrorCode.SANDBOX_INCOMPLETE,
            "the sandbox lacks a property that the job spec demands, or the claims state",
            expected=", ".join(demanded),
            found=f"all but {', '.join(missing)}",
            hint="see docs/decisions/0004-sandbox.md for what each property needs of the kernel",
        )
