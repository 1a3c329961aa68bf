"""The one-shot job, stage after stage. It runs as the supervisor: it has the keys, and no network.

starting → preparing → awaiting-dataset → opening → training → sealing → awaiting-pull → done | failed
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from trainer import logs
from trainer.attestation.dstack.compose import compose_hash
from trainer.encoding import file_sha256, sha256_hex
from trainer.errors import ErrorCode, ExitCode, JobError, SealingError, TrainerError, UnavailableError
from trainer.ipc import worker_messages as protocol
from trainer.job.checkpoints import Checkpoints
from trainer.job.ciphertext import Ciphertext, ciphertext_directory
from trainer.job.destruction import destroy_and_sign
from trainer.job.evidence_issuer import EvidenceIssuer, software_versions
from trainer.job.fetch_process import FETCH_SECONDS
from trainer.job.front_process import FrontProcess
from trainer.job.grant_demands import require_kept, require_promised
from trainer.job.job_keys import JobKeys, derive_keys
from trainer.job.outcome import HANDED_OVER, JobOutcome, Signer, seal_ending
from trainer.job.private_events import seal_metrics
from trainer.job.processes import JobProcesses, require_sandbox, start_processes
from trainer.job.sandbox_plans import JobPaths, grant_worker_access
from trainer.job.termination import Termination, termination
from trainer.job.worker_process import Follower, WorkerProcess
from trainer.job.workspace import Workspace, open_workspace
from trainer.models import Phase, Status
from trainer.sandbox import privileges
from trainer.sandbox.properties import SandboxProperty, SandboxReport
from trainer.sealing.atomic_files import SHARED_MODE
from trainer.sealing.bundle import BundleLimits, OpenedBundle
from trainer.sealing.seal import open_bundle
from trainer.sealing.sealed_checkpoint import CheckpointBinding
from trainer.spec import JobSpec, read_job_spec

INTERRUPTED_LINGER_SECONDS: Final = 30


@dataclass(frozen=True)
class JobOptions:
    """What the operator decides: none of it changes what the job does, only where it lies.

    Args:
        spec: job.yaml.
        guest_agent: path of dstack's socket; None looks in its usual places.
        spool: exchange through files in this directory instead of HTTP.
        ciphertext: where sealed uploads, checkpoints and results wait under HTTP; None makes a temporary
            directory, which no other start of the job will find.
        workspace: a directory on tmpfs; None looks for one.
    """

    spec: Path
    guest_agent: str | None = None
    spool: Path | None = None
    ciphertext: Path | None = None
    workspace: Path | None = None


def run_job(options: JobOptions) -> ExitCode:
    """Run one job from its spec to its end.

    Returns:
        DONE after the result was acknowledged or `linger_seconds` passed; JOB when the job failed and said why in
        a sealed report; another code when it failed before it knew whom to tell.

    Raises:
        UsageError: the spec is not one (nothing private has been seen by then).
        JobError: there is no safe workspace.
    """
    spec = read_job_spec(options.spec)
    with (
        open_workspace(options.workspace) as workspace,
        ciphertext_directory(options.spool or options.ciphertext) as ciphertext,
    ):
        public = logs.take_over_output(workspace.private_log)
        public(logs.SpecLoaded(spec.sha256()))
        try:
            with termination() as told:
                return _Job(options, spec, workspace, ciphertext, public, told).run()
        except TrainerError as error:
            logs.private.exception("the job failed before it could report to the provider")
            public(logs.JobFailed(error.code))
            return error.exit_code
        except Exception:  # noqa: BLE001 -- the last line of defence: its text must not reach stderr
            logs.private.exception("internal error")
            public(logs.JobFailed(ErrorCode.INTERNAL))
            return ExitCode.BUG


class _Job:
    """State of the one job this process runs."""

    def __init__(
        self,
        options: JobOptions,
        spec: JobSpec,
        workspace: Workspace,
        ciphertext: Ciphertext,
        public: logs.PublicLog,
        told: Termination,
    ) -> None:
        self.options = options
        self.spec = spec
        self.workspace = workspace
        self.ciphertext = ciphertext
        self.public = public
        self.termination = told
        self.status = Status(phase=Phase.STARTING)
        self.tls_spki_sha256: str | None = None
        self.sandbox: SandboxReport = {}

    def run(self) -> ExitCode:
        """The story of the job."""
        self.public(logs.PhaseEntered(Phase.STARTING))
        privileges.keep_to_itself()
        with start_processes(self.spec, self._places()) as house:
            self._settle(house)
            front, agent = house.front, house.connect(self.options.guest_agent)
            compose_sha256 = compose_hash(agent.info().app_compose)
            keys = derive_keys(agent, self.spec.sha256())
            signer = Signer(agent, keys, self.spec, compose_sha256, software_versions())
            witness = EvidenceIssuer(agent, self.spec, keys, self.sandbox, self.tls_spki_sha256)
            self._enter(front, Phase.PREPARING)
            house.fetch.wait(FETCH_SECONDS)
            house.worker.announce_model()
            front.serve_evidence(witness.evidence)
            bundle = self._receive(front, keys)
            checkpoints = self._checkpoints(keys, bundle, compose_sha256)
            ending = self._train(front, house.worker, bundle, checkpoints)
            code = self._hand_over(front, signer, bundle, ending)
            self._clear(ending, checkpoints)
            return code

    # starting

    def _places(self) -> JobPaths:
        by_files, folder = self.options.spool is not None, self.options.spec.parent
        return JobPaths(self.workspace, self.ciphertext.folder, folder, by_files=by_files)

    def _settle(self, house: JobProcesses) -> None:
        """Say where the front listens; end here, before there are keys, where a demanded wall does not stand."""
        self.tls_spki_sha256, self.sandbox = house.ready.tls_spki_sha256, house.sandbox
        self.public(logs.Listening(house.ready.port, house.ready.tls_spki_sha256))
        require_sandbox(self.spec.tee.sandbox, house.sandbox)

    def _enter(
        self, front: FrontProcess, phase: Phase, *, error: ErrorCode | None = None, result_bytes: int | None = None
    ) -> None:
        self.status = Status(
            phase=phase,
            step=self.status.step,
            total_steps=self.status.total_steps,
            error=error.value if error else None,
            result_bytes=result_bytes,
        )
        front.publish_status(self.status)
        self.public(logs.PhaseEntered(phase))

    # awaiting-dataset

    def _receive(self, front: FrontProcess, keys: JobKeys) -> OpenedBundle:
        """Take uploads until one opens. A stranger's garbage must not end the job."""
        deadline = time.monotonic() + self.spec.exchange.dataset_timeout_seconds
        refused: ErrorCode | None = None
        left_over = self.ciphertext.dataset.is_file() and self.options.spool is None  # a spool's front sees to it
        while True:
            if left_over:  # from before a restart: sealed to the derived key, it opens again
                size, left_over = self.ciphertext.dataset.stat().st_size, False
            else:
                self._enter(front, Phase.AWAITING_DATASET, error=refused)
                size = front.wait_upload(deadline - time.monotonic())
            self.public(logs.DatasetReceived(size))
            self._enter(front, Phase.OPENING)
            try:
                bundle = self._open(keys)
            except (SealingError, UnavailableError) as error:  # the latter: more than the workspace can hold
                logs.private.exception("an upload was refused")
                refused = error.code
                self.ciphertext.dataset.unlink(missing_ok=True)
            else:
                if not self.ciphertext.lasts:
                    self.ciphertext.dataset.unlink(missing_ok=True)
                return bundle

    def _open(self, keys: JobKeys) -> OpenedBundle:
        bundle = open_bundle(
            self.ciphertext.dataset,
            keys.identities,
            self.spec.sha256(),
            self.workspace.dataset,
            now=int(time.time()),
            limits=BundleLimits(max_bytes=self.spec.exchange.max_upload_bytes),
        )
        if self.sandbox.get(SandboxProperty.SEPARATE_USERS):
            grant_worker_access(self.workspace.dataset)
        return bundle

    # training

    def _checkpoints(self, keys: JobKeys, bundle: OpenedBundle, compose_sha256: str) -> Checkpoints:
        binding = CheckpointBinding(
            job_spec_sha256=self.spec.sha256(),
            dataset_manifest_sha256=bundle.manifest.sha256(),
            app_compose_sha256=compose_sha256,
        )
        made = keys.checkpoint_keys(bundle.grant.token, binding)
        return Checkpoints(self.ciphertext.folder, made, binding, self.spec.train.save_total_limit, self.public)

    def _train(
        self, front: FrontProcess, worker: WorkerProcess, bundle: OpenedBundle, checkpoints: Checkpoints
    ) -> JobOutcome:
        """Train; whatever goes wrong becomes an ending that the provider, and only the provider, can read."""
        started = int(time.time())
        summary: Mapping[str, JsonValue] = {}
        failure: TrainerError | None = None
        try:
            if bundle.grant.allow.private_progress:
                front.admit_token(sha256_hex(bundle.grant.token.encode()))
            self._enter(front, Phase.TRAINING)
            require_promised(bundle.grant, self.spec)
            order = self._order(bundle.files, checkpoints)
            with self.termination.instead(worker.interrupt):  # it writes its state down before it ends
                summary = worker.train(order, self._follower(front, bundle, checkpoints))
            require_kept(bundle.grant, summary)
        except TrainerError as error:
            logs.private.exception("training failed")
            # A worker that did not end in time was killed, and died of being told to end.
            killed = self.termination.told and error.code is ErrorCode.WORKER_DIED
            failure = JobError(ErrorCode.INTERRUPTED, "the job was told to end (SIGTERM)") if killed else error
        except Exception as error:  # noqa: BLE001 -- reported under seal, never in public
            logs.private.exception("internal error in training")
            failure = JobError(
                ErrorCode.INTERNAL, f"internal error: {type(error).__name__}", hint="see logs/job.log"
            )
        finally:
            worker.end()
            checkpoints.keys.destroy()  # nothing is sealed with them any more; a next start derives them again
        return JobOutcome(started, int(time.time()), summary, failure, checkpoints.last)

    def _order(self, files: Mapping[str, Path], checkpoints: Checkpoints) -> protocol.TrainingOrder:
        place = self.workspace
        resume_dir = place.dataset / "checkpoint"
        resumed = checkpoints.resume(resume_dir) is not None
        if resumed and self.sandbox.get(SandboxProperty.SEPARATE_USERS):
            grant_worker_access(resume_dir)
        return protocol.TrainingOrder(
            spec=self.spec,
            model_dir=place.model,
            data_files=dict(files),
            output_dir=place.output,
            resume_dir=resume_dir if resumed else None,
        )

    def _follower(self, front: FrontProcess, bundle: OpenedBundle, checkpoints: Checkpoints) -> Follower:
        def follow(message: protocol.Progress | protocol.Metrics | protocol.Saved) -> None:
            front.require_running()
            match message:
                case protocol.Progress():
                    self._progress(front, message)
                case protocol.Saved():
                    checkpoints.take(message.step, self.workspace.output)
                case protocol.Metrics() if bundle.grant.allow.private_progress:
                    front.publish_private_event(seal_metrics(message, bundle.grant))

        return follow

    def _progress(self, front: FrontProcess, message: protocol.Progress) -> None:
        self.status = Status(
            phase=Phase.TRAINING,
            step=message.step,
            total_steps=message.total_steps,
            eta_seconds=message.eta_seconds,
        )
        front.publish_status(self.status)
        self.public(logs.TrainingProgress(message.step, message.total_steps, message.eta_seconds))

    # sealing and awaiting-pull

    def _hand_over(
        self, front: FrontProcess, signer: Signer, bundle: OpenedBundle, ending: JobOutcome
    ) -> ExitCode:
        self._enter(front, Phase.SEALING)
        if ending.failure is not None:
            self.workspace.make_room(keep_output=ending.failure.code in HANDED_OVER)
        target = self.ciphertext.result
        with self.termination.instead(lambda: None):  # what is finished is not lost for a signal now
            size = seal_ending(signer, bundle, ending, self.workspace, target)
            target.chmod(SHARED_MODE)  # ciphertext: the front, another user, hands it out
        shutil.rmtree(self.workspace.dataset, ignore_errors=True)
        front.offer_result(size, file_sha256(target))
        self.public(logs.ResultSealed(size))
        if ending.failure is None:
            self._enter(front, Phase.AWAITING_PULL, result_bytes=size)
        else:
            self._enter(front, Phase.FAILED, error=ending.failure.code, result_bytes=size)
            self.public(logs.JobFailed(ending.failure.code))
        acknowledged = front.wait_acknowledged(self._linger_seconds(ending))
        front.stop_evidence()
        front.publish_deletion(destroy_and_sign(signer, bundle, self.workspace, target, acknowledged=acknowledged))
        if ending.failure is not None:
            return ExitCode.JOB
        self._enter(front, Phase.DONE)
        return ExitCode.DONE

    def _clear(self, ending: JobOutcome, checkpoints: Checkpoints) -> None:
        """Leave in the ciphertext directory what the next start of this job can use, and the result."""
        if ending.failure is None:
            checkpoints.remove()
        if ending.failure is None or ending.failure.code is not ErrorCode.INTERRUPTED:
            self.ciphertext.dataset.unlink(missing_ok=True)

    def _linger_seconds(self, ending: JobOutcome) -> int:
        """How long the result is offered. Whoever sent SIGTERM follows it with SIGKILL: do not wait for that."""
        linger = self.spec.exchange.linger_seconds
        interrupted = ending.failure is not None and ending.failure.code is ErrorCode.INTERRUPTED
        told = interrupted or self.termination.told
        return min(linger, INTERRUPTED_LINGER_SECONDS) if told else linger
