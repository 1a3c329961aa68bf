"""The supervisor's side of the sync process: a child with network access that keeps spool and store in step."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, JobError, TrainerError
from trainer.ipc.channel import Channel
from trainer.ipc.store_sync_messages import FROM_SYNC, TO_SYNC, SyncFailed, SyncOrder, SyncReport
from trainer.job import child_process as children
from trainer.logs import private
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import ExchangeSection

READY_SECONDS: Final = 300.0
"""Time for the store to answer at the start."""

_LAST_SECONDS: Final = 120.0
"""Time for the last files of the job to reach the store."""


class StoreSyncProcess:
    """A running sync process.

    Args:
        process: the child.
        channel: the supervisor's end of its channel.
        order: what it has to carry.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: Channel[SyncReport, SyncOrder],
        order: SyncOrder,
    ) -> None:
        self._process = process
        self._channel = channel
        self._order = order

    def begin(self, died: Callable[[], None]) -> None:
        """Sends the order. Only after this process has confined itself, which takes one thread.

        Args:
            died: is called when the child has ended, also at the end of the job.
        """
        with suppress(TrainerError):  # it died: `wait_ready` reports it
            self._channel.send(self._order)

        def watch() -> None:
            self._process.wait()
            died()

        threading.Thread(target=watch, name="store-sync-watch", daemon=True).start()

    def wait_ready(self) -> None:
        """Waits until the store has answered.

        Raises:
            JobError: the sync process died, or the store refuses or does not answer (`store-refused`,
                `store-unavailable`).
        """
        try:
            report = self._channel.receive(timeout=READY_SECONDS)
        except TrainerError as error:
            raise JobError(
                ErrorCode.STORE_UNAVAILABLE, "the object store does not answer"
            ) from error
        if report is None:
            raise JobError(
                ErrorCode.STORE_SYNC_DIED, "the sync process died", hint="see the private log"
            )
        if isinstance(report, SyncFailed):
            raise report.as_error()

    def end(self) -> None:
        """Lets the sync process send what is left, and ends it by force if that takes too long."""
        self._channel.close_sending()
        try:
            self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            private.warning("not everything reached the object store before the job ended")
        children.stop_process(self._process)
        self._channel.close()


@contextmanager
def store_sync_process(
    exchange: ExchangeSection,
    variables: Mapping[str, str],
    *,
    spool: Path,
    log: Path,
    plan: SandboxPlan,
) -> Iterator[StoreSyncProcess | None]:
    """Runs a sync process for the time of the context, if the job has a store; yields None otherwise.

    Args:
        exchange: section `exchange` of the job spec.
        variables: how the store is reached. They go through the pipe: an environment could be read in /proc.
        spool: the spool directory.
        log: a private log.
        plan: what the sync process confines itself to.
    """
    if exchange.store is None:
        yield None
        return
    order = SyncOrder(
        store=exchange.store,
        variables=variables,
        spool=str(spool),
        max_upload_bytes=exchange.max_upload_bytes,
        plan=plan,
    )
    with log.open("ab") as stream:
        process, channel = children.start_on_channel(
            "trainer.store_sync",
            FROM_SYNC,
            TO_SYNC,
            environment=children.clean_environment(spool),
            log=stream,
        )
    sync = StoreSyncProcess(process, channel, order)
    try:
        yield sync
    finally:
        sync.end()
