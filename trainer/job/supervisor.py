"""The one-shot job, stage after stage, in the supervisor: the process that has the keys and no network.

starting → preparing → awaiting-dataset → opening → training → sealing → awaiting-pull → done | failed

`_Job.run` is the sequence; each stage returns a value that the next one needs: keys, opened bundle, outcome.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from trainer import logs
from trainer.attestation.dstack.compose import compose_hash
from trainer.encoding import sha256_hex
from trainer.errors import RESUMABLE, ErrorCode, ExitCode, JobError, SealingError, TrainerError, UnavailableError
from trainer.ipc import worker_messages as protocol
from trainer.ipc.front_messages import StatusUpdate, TokenHash
from trainer.job.checkpoints import CheckpointStore
from trainer.job.ciphertext import CiphertextDirectory, open_ciphertext_directory
from trainer.job.disclosures import TrainingDisclosures
from trainer.job.end_record import EndRecord, EndRecordFile, PrivacySpent
from trainer.job.evidence_issuer import EvidenceIssuer, software_versions
from trainer.job.fetch_process import FETCH_SECONDS
from trainer.job.front_process import FrontProcess
from trainer.job.grant_demands import require_privacy_met, require_privacy_promised, spent_by
from trainer.job.hand_over import HandOver
from trainer.job.job_keys import JobKeys, derive_keys
from trainer.job.job_options import JobOptions
from trainer.job.memory_limit import memory_limit, require_memory
from trainer.job.outcome import JobOutcome, ReceiptSigner
from trainer.job.processes import require_sandbox, start_processes
from trainer.job.sandbox_plans import JobPaths, grant_worker_access
from trainer.job.start_checks import require_usable_socket
from trainer.job.termination import INTERRUPTED_MESSAGE, Termination, handle_termination
from trainer.job.training_follower import TrainingFollower
from trainer.job.worker_process import WorkerProcess
from trainer.job.workspace import Workspace, open_workspace
from trainer.models import Phase, Status
from trainer.sandbox import privileges
from trainer.sandbox.properties import SandboxProperty, SandboxReport
from trainer.sealing.bundle import BundleLimits, OpenedBundle
from trainer.sealing.grant_secrets import events_token
from trainer.sealing.seal import open_bundle
from trainer.sealing.sealed_checkpoint import CheckpointBinding
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
        open_workspace(options.workspace) as workspace,
        open_ciphertext_directory(options.spool or options.ciphertext) as ciphertext,
    ):
        public = logs.take_over_output(workspace.private_log)
        public(logs.SpecLoaded(spec.sha256()))
        try:
            with handle_termination() as termination:
                job = _Job(options, spec, spec_folder, workspace, ciphertext, public, termination, limit)
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
        self.spent: PrivacySpent | None = None

    def run(self) -> ExitCode:
        """Runs every stage in order; returns the exit code."""
        self.public(logs.PhaseEntered(Phase.STARTING))
        privileges.keep_to_itself()
        by_files = self.options.spool is not None
        paths = JobPaths(self.workspace, self.ciphertext.folder, self.spec_folder, by_files=by_files)
        with start_processes(self.spec, paths, hub_token=self.options.hub_token) as processes:
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
                if not record.destroyed:  # the earlier start was killed before; its workspace is gone already
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
            bundle = self._receive(front, keys)
            checkpoints = self._checkpoints(keys, bundle, compose_sha256)
            self.spent = record.spent_on(bundle.manifest.sha256()) if record is not None else None
            outcome = self._train(front, processes.worker, bundle, checkpoints)
            return self._offer(hand_over, hand_over.seal(bundle, outcome))

    def _offer(self, hand_over: HandOver, record: EndRecord) -> ExitCode:
        if record.is_final:
            self.ciphertext.remove_inputs()  # no other start of this job has a use for them
        self.can_go_on = not record.is_final
        return hand_over.offer(record)

    def _hand_over(self, front: FrontProcess, signer: ReceiptSigner, ends: EndRecordFile) -> HandOver:
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
        self, front: FrontProcess, phase: Phase, *, error: ErrorCode | None = None, result_bytes: int | None = None
    ) -> None:
        """Publishes that the job entered another phase."""
        self.status = Status(
            phase=phase,
            step=self.status.step,
            total_steps=self.status.total_steps,
            error=error.value if error else None,
            result_bytes=result_bytes,
        )
        front.send(StatusUpdate(status=self.status))
        self.public(logs.PhaseEntered(phase))

    # awaiting-dataset and opening

    def _receive(self, front: FrontProcess, keys: JobKeys) -> OpenedBundle:
        """Takes uploads until one opens. Anyone can upload: what does not open must not end the job."""
        deadline = time.monotonic() + self.spec.exchange.dataset_timeout_seconds
        refused: ErrorCode | None = None
        waiting = Phase.AWAITING_DATASET
        # A sealed dataset from before a restart opens again with the derived key. In a spool the front reports it.
        left_over = self.ciphertext.dataset_bytes() if self.options.spool is None else None
        while True:
            if (size := left_over) is None:
                self._enter(front, waiting, error=refused)
                size = front.wait_upload(deadline - time.monotonic(), keys.upload_scope(self.spec.sha256()))
            self.public(logs.DatasetReceived(size))
            self._enter(front, Phase.OPENING)
            try:
                bundle = self._open(keys)
            except (SealingError, UnavailableError) as error:  # UnavailableError: larger than the workspace
                logs.log_error("an upload was refused", error)
                if left_over is not None and error.code is ErrorCode.NO_IDENTITY_MATCH:
                    # Sealed to the instance key of an earlier start, which ended with it. Nothing is wrong with
                    # the dataset, but its provider has to verify this start before anything is trained.
                    waiting = Phase.AWAITING_GRANT
                else:
                    refused = error.code
                left_over = None
                self.ciphertext.remove_dataset()
            else:
                if not self.ciphertext.persistent:
                    self.ciphertext.remove_dataset()
                return bundle

    def _open(self, keys: JobKeys) -> OpenedBundle:
        bundle = open_bundle(
            self.ciphertext.dataset,
            keys.identities,
            self.spec.sha256(),
            self.workspace.dataset,
            now=int(time.time()),
            limits=BundleLimits(max_bytes=self.spec.exchange.max_upload_bytes),
            providers=self.spec.exchange.providers,
        )
        if self.sandbox.get(SandboxProperty.SEPARATE_USERS):
            grant_worker_access(self.workspace.dataset)
        return bundle

    def _checkpoints(self, keys: JobKeys, bundle: OpenedBundle, compose_sha256: str) -> CheckpointStore:
        binding = CheckpointBinding(
            job_spec_sha256=self.spec.sha256(),
            dataset_manifest_sha256=bundle.manifest.sha256(),
            app_compose_sha256=compose_sha256,
        )
        checkpoint_keys = keys.checkpoint_keys(bundle.grant.secret, binding)
        limit = self.spec.train.save_total_limit
        return CheckpointStore(self.ciphertext.folder, checkpoint_keys, binding, limit, self.public)

    def _train(
        self, front: FrontProcess, worker: WorkerProcess, bundle: OpenedBundle, checkpoints: CheckpointStore
    ) -> JobOutcome:
        """Trains; returns the outcome. Every error becomes a failed one, which only the provider can read."""
        started = int(time.time())
        summary: Mapping[str, JsonValue] = {}
        failure: TrainerError | None = None
        try:
            if bundle.grant.allow.private_progress:
                # Only the token's digest, which the front compares with the digest of what a client sends.
                front.send(TokenHash(sha256=sha256_hex(events_token(bundle.grant.secret).encode())))
            self._enter(front, Phase.TRAINING)
            # Before the worker sees a row: a grant that the spec does not satisfy permits no use of the dataset.
            require_privacy_promised(bundle.grant, self.spec, self.spent)
            order = self._training_order(bundle, checkpoints)
            with self.termination.redirected_to(worker.interrupt):  # the worker saves its state before it ends
                summary = worker.train(order, self._follower(front, bundle, checkpoints))
            require_privacy_met(bundle.grant, spent := spent_by(summary, self.spent))
            self.spent = spent  # only here: a run that releases no weights spends nothing
        except TrainerError as error:
            logs.log_error("training failed", error)
            # After SIGTERM, a worker that does not save its state in time is killed: that is an interruption too.
            was_killed = self.termination.signalled and error.code is ErrorCode.WORKER_DIED
            failure = JobError(ErrorCode.INTERRUPTED, INTERRUPTED_MESSAGE) if was_killed else error
        except Exception as error:  # noqa: BLE001 -- reported under seal, never in public
            logs.private.exception("internal error in training")
            failure = JobError(
                ErrorCode.INTERNAL, f"internal error: {type(error).__name__}", hint="see logs/job.log"
            )
        finally:
            worker.end()
            checkpoints.keys.destroy()  # no checkpoint is sealed after this; another start derives them again
        return JobOutcome(started, int(time.time()), summary, failure, checkpoints.last, privacy=self.spent)

    def _training_order(self, bundle: OpenedBundle, checkpoints: CheckpointStore) -> protocol.TrainingOrder:
        resume_dir = self.workspace.dataset / "checkpoint"
        is_resumed = checkpoints.resume(resume_dir) is not None
        if is_resumed and self.sandbox.get(SandboxProperty.SEPARATE_USERS):
            grant_worker_access(self.workspace.dataset)
        return protocol.TrainingOrder(
            spec=self.spec,
            model_dir=self.workspace.model,
            data_files=dict(bundle.files),
            output_dir=self.workspace.output,
            split_key=bundle.manifest.split_key().hex(),
            resume_dir=resume_dir if is_resumed else None,
        )

    def _follower(
        self, front: FrontProcess, bundle: OpenedBundle, checkpoints: CheckpointStore
    ) -> TrainingFollower:
        """Returns the handler of the worker's messages, which releases what becomes public."""
        disclosures = TrainingDisclosures(
            front=front,
            spec=self.spec,
            grant=bundle.grant,
            folder=self.ciphertext.folder,
            replaceable_bytes=checkpoints.own_bytes,
            set_status=partial(setattr, self, "status"),
            public=self.public,
        )
        output, termination = self.workspace.output, self.termination
        return TrainingFollower(self.spec, output, checkpoints, disclosures, lambda: termination.signalled)
