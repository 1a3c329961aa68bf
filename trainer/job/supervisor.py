"""The one-shot job, stage after stage, in the supervisor: the process that has the keys and no network.

starting → preparing → awaiting-dataset → opening → training → sealing → awaiting-pull → done | failed
                              ↑                                  │
                              └──── the dataset was refused ─────┘

`_Job.run` is the sequence; each stage returns a value that the next one needs: keys, opened bundle, outcome.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer import logs
from trainer.attestation.dstack.compose import compose_hash
from trainer.errors import RESUMABLE, ErrorCode, ExitCode, TrainerError
from trainer.ipc.front_messages import StatusUpdate
from trainer.job.ciphertext import CiphertextDirectory, open_ciphertext_directory
from trainer.job.dataset_tries import DatasetTries
from trainer.job.end_record import EndRecord, EndRecordFile
from trainer.job.evidence_issuer import EvidenceIssuer, software_versions
from trainer.job.fetch_process import FETCH_SECONDS
from trainer.job.front_process import FrontProcess
from trainer.job.hand_over import HandOver
from trainer.job.job_keys import JobKeys, derive_keys
from trainer.job.job_options import JobOptions
from trainer.job.memory_limit import memory_limit, require_memory
from trainer.job.processes import JobProcesses, require_sandbox, start_processes
from trainer.job.reception import Reception
from trainer.job.result_statements import ReceiptSigner
from trainer.job.sandbox_plans import JobPaths
from trainer.job.start_checks import require_usable_socket
from trainer.job.termination import Termination, handle_termination
from trainer.job.workspace import Workspace, open_workspace
from trainer.models import Phase, Status
from trainer.sandbox import privileges
from trainer.sandbox.properties import SandboxReport
from trainer.spec import JobSpec


@dataclass(frozen=True)
class JobEnd:
    """How a start of the job ended.

    Attributes:
        code: DONE after the result was acknowledged or `linger_seconds` passed; JOB if the job failed and sealed a
            report of it; another code if it failed before there was a grant, and so a recipient of a report.
        can_go_on: whether another start goes on from what lies in the ciphertext directory.
    """

    code: ExitCode
    can_go_on: bool = False


def run_job(options: JobOptions) -> JobEnd:
    """Runs one job from its spec to its end.

    Raises:
        UsageError: the spec is not valid, or a directory cannot be used; nothing private has been seen by then.
        UnavailableError: the guest agent's socket cannot be used.
        JobError: there is no safe workspace, or the container's memory limit is too small.
    """
    spec, spec_folder = options.read_spec(os.environ)
    require_memory(limit := memory_limit())
    require_usable_socket(options.guest_agent)
    with (
        open_workspace(options.workspace, spec.exchange.dataset_tries) as workspace,
        open_ciphertext_directory(options.spool or options.ciphertext) as ciphertext,
    ):
        public = logs.take_over_output(workspace.private_log)
        public(logs.SpecLoaded(spec.sha256()))
        try:
            with handle_termination() as termination:
                job = _Job(
                    options, spec, spec_folder, workspace, ciphertext, public, termination, limit
                )
                return JobEnd(job.run(), job.can_go_on)
        except TrainerError as error:
            logs.log_error("the job failed before it could report to the provider", error)
            public(logs.JobFailed(error.code))
            return JobEnd(error.exit_code, can_go_on=error.code in RESUMABLE)
        except Exception:  # noqa: BLE001 -- a text that nobody wrote for the public must not reach stderr
            logs.private.exception("internal error")
            public(logs.JobFailed(ErrorCode.INTERNAL))
            return JobEnd(ExitCode.BUG)


class _Job:
    """State of the one job that this process runs."""

    def __init__(
        self,
        options: JobOptions,
        spec: JobSpec,
        spec_folder: Path,
        workspace: Workspace,
        ciphertext: CiphertextDirectory,
        public: logs.PublicLog,
        termination: Termination,
        memory_limit: int | None,
    ) -> None:
        self.options = options
        self.spec = spec
        self.spec_folder = spec_folder
        self.workspace = workspace
        self.ciphertext = ciphertext
        self.public = public
        self.termination = termination
        self.memory_limit = memory_limit
        self.status = Status(phase=Phase.STARTING)
        self.sandbox: SandboxReport = {}
        self.can_go_on = False
        self.by_files = options.spool is not None or spec.exchange.store is not None

    def run(self) -> ExitCode:
        """Runs every stage in order; returns the exit code."""
        self.public(logs.PhaseEntered(Phase.STARTING))
        privileges.keep_to_itself()
        paths = JobPaths(
            self.workspace, self.ciphertext.folder, self.spec_folder, by_files=self.by_files
        )
        store = self.options.read_store(self.spec)
        with start_processes(
            self.spec, paths, hub_token=self.options.hub_token, store_variables=store
        ) as processes:
            self.sandbox = processes.sandbox
            self.public(logs.Listening(processes.ready.port, processes.ready.tls_spki_sha256))
            # All processes are confined by now. Without a demanded property the job ends here, before it has keys.
            require_sandbox(self.spec.tee.sandbox, processes.sandbox)
            front, agent = processes.front, processes.connect(self.options.guest_agent)
            compose_sha256 = compose_hash(agent.info().app_compose)
            keys = derive_keys(agent, self.spec.sha256())
            signer = ReceiptSigner(agent, keys, self.spec, compose_sha256, software_versions())
            issuer = EvidenceIssuer(agent, self.spec, keys, self.sandbox, processes.ready.tls_key)
            record_key = keys.end_record_key(self.spec.sha256(), compose_sha256)
            ends = EndRecordFile(self.ciphertext.end_record, record_key)
            hand_over = self._hand_over(front, signer, ends)
            if (record := ends.load()) is not None and hand_over.is_still_offered(record):
                # The earlier start was killed before; its workspace is gone already.
                if not record.destroyed:
                    processes.end_before_destruction()
                    record = hand_over.destroy(record)
                # Derived again by this start: nothing is opened with them, and the statement calls them destroyed.
                keys.destroy_identities()
                # Evidence, so that the provider can tell this start's TLS key; no upload is accepted any more.
                front.serve_evidence(issuer.evidence)
                return self._offer(hand_over, record)
            self._enter(front, Phase.PREPARING)
            processes.fetch.wait(FETCH_SECONDS)
            require_memory(self.memory_limit, self.workspace.model_bytes())
            processes.worker.announce_model()
            # Evidence is the offer to accept a dataset: not before the attested base model is in place.
            front.serve_evidence(issuer.evidence)
            tries = self._tries(processes, keys, hand_over, compose_sha256, record)
            return self._offer(hand_over, tries.train_on_one())

    def _offer(self, hand_over: HandOver, record: EndRecord) -> ExitCode:
        if record.is_without_training:
            self.ciphertext.remove_dataset()  # a checkpoint may be of another dataset, whose provider comes back
        elif record.is_final:
            self.ciphertext.remove_inputs()  # no other start of this job has a use for them
        self.can_go_on = not record.is_final
        return hand_over.offer(record)

    def _hand_over(
        self, front: FrontProcess, signer: ReceiptSigner, ends: EndRecordFile
    ) -> HandOver:
        return HandOver(
            front=front,
            signer=signer,
            workspace=self.workspace,
            ciphertext=self.ciphertext,
            record_file=ends,
            linger_seconds=self.spec.exchange.linger_seconds,
            enter=partial(self._enter, front),
            public=self.public,
            termination=self.termination,
        )

    def _enter(
        self,
        front: FrontProcess,
        phase: Phase,
        *,
        error: ErrorCode | None = None,
        result_bytes: int | None = None,
        received: tuple[int, ...] = (),
        withdrawn: tuple[int, ...] = (),
        retained: tuple[int, ...] = (),
    ) -> None:
        """Publishes that the job entered another phase."""
        self.status = Status(
            phase=phase,
            step=self.status.step,
            total_steps=self.status.total_steps,
            error=error.value if error else None,
            result_bytes=result_bytes,
            received=received,
            withdrawn=withdrawn,
            retained=retained,
        )
        front.send(StatusUpdate(status=self.status))
        self.public(logs.PhaseEntered(phase))

    def _tries(
        self,
        processes: JobProcesses,
        keys: JobKeys,
        hand_over: HandOver,
        compose_sha256: str,
        earlier: EndRecord | None,
    ) -> DatasetTries:
        enter = partial(self._enter, processes.front)
        # A sealed dataset from before a restart: also one that the start before had set aside.
        self.ciphertext.restore_dataset()
        reception = Reception(
            processes.front,
            keys,
            self.spec,
            self.ciphertext,
            enter,
            self.public,
            left_over=None if self.by_files else self.ciphertext.dataset_bytes(),
            spooled=self.ciphertext.dataset_identity() if self.by_files else None,
        )
        return DatasetTries(
            processes=processes,
            reception=reception,
            hand_over=hand_over,
            spec=self.spec,
            compose_sha256=compose_sha256,
            earlier=earlier,
            enter=enter,
            set_status=partial(setattr, self, "status"),
            public=self.public,
            termination=self.termination,
        )
