"""The supervisor's side of the fetch process: a short-lived child with network access brings the base model.

The supervisor opens no network socket; it only waits for the report. The report is believed: the fetch process
hashes and stores the bytes of the hub, and interprets none of them beyond HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from trainer.errors import ErrorCode, UnavailableError
from trainer.ipc.fetch_messages import FROM_FETCH, TO_FETCH, FetchFailed, FetchOrder
from trainer.job import child_process as children
from trainer.job.workspace import Workspace
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import JobSpec

FETCH_SECONDS: Final = 6 * 3600
"""Time for all files of the base model to arrive."""

_HUB_VARIABLES: Final = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE")
"""Address of the operator's mirror. It is not trusted: what comes from there is checked by digest."""

_RETRYABLE: Final = frozenset({ErrorCode.MODEL_UNAVAILABLE, ErrorCode.TIMEOUT})


class FetchProcess:
    """A running fetch process.

    Starting it and giving it its order are separate, so that the supervisor can confine itself, and so give up the
    right to start processes, before the first byte arrives.

    Args:
        order: what to fetch.
        environment: the child's variables.
        log: gets what the child and its libraries print.
    """

    def __init__(
        self, order: FetchOrder, *, environment: Mapping[str, str], log: IO[bytes]
    ) -> None:
        self._order: FetchOrder | None = order
        self._process, self._channel = children.start_on_channel(
            "trainer.fetch", FROM_FETCH, TO_FETCH, environment=environment, log=log
        )

    def begin(self) -> None:
        """Sends the order. Further calls do nothing."""
        order, self._order = self._order, None
        if order is not None:
            with suppress(UnavailableError):  # the child died: `wait` reports it
                self._channel.send(order)
            self._channel.close_sending()

    def wait(self, timeout: float) -> None:
        """Waits until every file is in place; begins if `begin` was not called.

        Args:
            timeout: seconds.

        Raises:
            JobError: a file does not have the digest of the job spec (`model-digest-mismatch`), is missing
                (`model-invalid`), or does not fit (`workspace-full`).
            UnavailableError: `model-unavailable`: the hub does not give a file, or the child died; `timeout`.
        """
        try:
            self.begin()
            report = self._channel.receive(timeout=timeout)
        except UnavailableError as error:
            if error.code is not ErrorCode.TIMEOUT:
                raise
            message = f"the base model did not arrive in {timeout:.0f} s"
            raise UnavailableError(ErrorCode.TIMEOUT, message) from error
        finally:
            self.end()
        if report is None:
            raise UnavailableError(
                ErrorCode.MODEL_UNAVAILABLE, "the process that fetches the model died"
            )
        if isinstance(report, FetchFailed):
            failure = report.as_error()
            # Another class has another exit code: the operator may try again.
            if report.code in _RETRYABLE:
                raise UnavailableError(
                    failure.code,
                    failure.message,
                    expected=failure.expected,
                    found=failure.found,
                    hint=failure.hint,
                )
            raise failure

    def end(self) -> None:
        """Ends the child if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._channel.close()


def start_fetch(
    spec: JobSpec,
    spec_folder: Path,
    workspace: Workspace,
    plan: SandboxPlan,
    *,
    hub_token: str | None = None,
) -> FetchProcess:
    """Starts the process that fills `workspace.model` with exactly the files that the job spec lists.

    Args:
        spec: the job spec.
        spec_folder: directory that a relative `model_name_or_path` is relative to.
        workspace: the job's workspace.
        plan: what the child is confined to.
        hub_token: access to models at the hub. It goes through the pipe: an environment could be read in /proc.
    """
    hub = {name: os.environ[name] for name in _HUB_VARIABLES if name in os.environ}
    order = FetchOrder(
        model=spec.model,
        base_dir=str(spec_folder.resolve()),
        into=str(workspace.model),
        hub_token=None if spec.model.is_local else hub_token,
        plan=plan,
    )
    with workspace.private_log.open("ab") as log:
        return FetchProcess(
            order, environment=children.clean_environment(workspace.model, hub), log=log
        )
