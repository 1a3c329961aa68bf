"""The tries of one start: datasets are handed to a worker until one is trained on.

awaiting-dataset → opening → training → sealing ┬→ the job ends
       ↑                                        │
       └──────── the dataset was refused ───────┘

A dataset is refused if the failure is its own and came before the first optimizer step. Its provider gets a sealed
report, and the job waits for another dataset, with a worker and directories that no dataset has been in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from trainer import logs
from trainer.encoding import sha256_hex
from trainer.errors import DATASET_FAULTS, DataError, ErrorCode, JobError, TrainerError
from trainer.ipc import worker_messages as protocol
from trainer.ipc.front_messages import TokenHashes
from trainer.job.checkpoints import CheckpointStore
from trainer.job.disclosure_budget import RELEASES
from trainer.job.disclosures import TrainingDisclosures
from trainer.job.end_record import EndRecord, PrivacySpent
from trainer.job.grant_demands import require_privacy_met, require_privacy_promised, spent_by
from trainer.job.hand_over import HandOver, PhaseChange
from trainer.job.processes import JobProcesses
from trainer.job.reception import Reception
from trainer.job.result_statements import JobOutcome
from trainer.job.sandbox_plans import grant_worker_access, open_try
from trainer.job.termination import INTERRUPTED_MESSAGE, Termination
from trainer.job.training_follower import TrainingFollower
from trainer.job.worker_process import WorkerProcess
from trainer.models import Phase, Status
from trainer.sandbox.properties import SandboxProperty
from trainer.sealing.grant_secrets import events_token
from trainer.sealing.pool import Pool, ReceivedDataset
from trainer.sealing.sealed_checkpoint import CheckpointBinding
from trainer.sealing.state_key import checkpoint_keys
from trainer.spec import JobSpec
from trainer.spec.pool_names import number_in_pool


@dataclass
class DatasetTries:
    """Hands datasets to workers.

    Args:
        processes: the job's child processes.
        reception: receives the datasets.
        hand_over: seals what comes of each; holds the workspace of the current try.
        spec: the job spec.
        compose_sha256: digest of the attested compose text, in hex.
        earlier: the end record of an earlier start; None without one.
        enter: publishes a phase.
        set_status: receives the public status while a worker trains.
        public: publishes an event.
        termination: whether the operator asked the job to end.
    """

    processes: JobProcesses
    reception: Reception
    hand_over: HandOver
    spec: JobSpec
    compose_sha256: str
    earlier: EndRecord | None
    enter: PhaseChange
    set_status: Callable[[Status], None]
    public: Callable[[logs.PublicEvent], None]
    termination: Termination
    _spent: PrivacySpent | None = field(default=None, init=False)
    _releases: int = field(default=RELEASES, init=False)

    def train_on_one(self) -> EndRecord:
        """Trains on the first dataset that is not refused; returns the record of how the job ended.

        Raises:
            JobError: `dataset-timeout`: none was sent in time; or the front ended.
            UnavailableError: STORAGE_FULL: there was no room for a report or result within `linger_seconds`.
        """
        worker, report = self.processes.worker, None
        while True:
            try:
                bundle = self._receive()
            except JobError as error:
                if report is None or error.code is not ErrorCode.DATASET_TIMEOUT:
                    raise
                return self.hand_over.give_up(report)
            outcome = self._train(worker, bundle)
            if not outcome.refused or outcome.failure is None:
                return self.hand_over.seal(bundle, outcome)
            tries_left = self.hand_over.workspace.tries_left
            self.public(logs.DatasetRefused(outcome.failure.code, tries_left))
            if not tries_left:
                return self.hand_over.seal(bundle, outcome)
            report = self.hand_over.refuse(bundle, outcome)
            grant = bundle.grants[(outcome.at_fault or 1) - 1]
            self.reception.note_refusal(grant, report, outcome.at_fault)
            # The workspace of the next try is the current one from here on.
            workspace = self.hand_over.workspace.of_try(self.hand_over.workspace.number + 1)
            self.hand_over = replace(self.hand_over, workspace=workspace)
            if self.processes.sandbox.get(SandboxProperty.SEPARATE_USERS):
                open_try(workspace)
            worker = self.processes.begin_worker(workspace.number)

    def _receive(self) -> ReceivedDataset:
        bundle = self.reception.receive(self.hand_over.workspace.dataset)
        self._grant_worker_access()
        return bundle

    def _grant_worker_access(self) -> None:
        if self.processes.sandbox.get(SandboxProperty.SEPARATE_USERS):
            grant_worker_access(self.hand_over.workspace.dataset)

    def _checkpoints(self, bundle: ReceivedDataset) -> CheckpointStore:
        binding = CheckpointBinding(
            job_spec_sha256=self.spec.sha256(),
            dataset_manifest_sha256=bundle.manifest.sha256(),
            app_compose_sha256=self.compose_sha256,
        )
        keys = checkpoint_keys(bundle.grants, binding)
        limit = self.spec.train.save_total_limit
        return CheckpointStore(self.hand_over.ciphertext.folder, keys, binding, limit, self.public)

    def _train(self, worker: WorkerProcess, bundle: ReceivedDataset) -> JobOutcome:
        """Trains; returns the outcome. Every error becomes a failed one, which only the provider can read."""
        started, front = int(time.time()), self.processes.front
        summary: Mapping[str, JsonValue] = {}
        failure: TrainerError | None = None
        follower: TrainingFollower | None = None
        checkpoints = self._checkpoints(bundle)
        self._spent = (
            self.earlier.spent_on(bundle.manifest.sha256()) if self.earlier is not None else None
        )
        try:
            if all(grant.allow.private_progress for grant in bundle.grants):
                # Only the tokens' digests, which the front compares with the digest of what a client sends.
                tokens = (events_token(grant.secret) for grant in bundle.grants)
                front.send(
                    TokenHashes(sha256=tuple(sha256_hex(token.encode()) for token in tokens))
                )
            self.enter(Phase.TRAINING)
            # Before the worker sees a row: a grant that the spec does not satisfy permits no use of the dataset.
            for grant in bundle.grants:
                require_privacy_promised(grant, self.spec, self._spent)
            order = self._training_order(bundle, checkpoints)
            follower = self._follower(bundle, checkpoints)
            # The worker saves its state before it ends.
            with self.termination.redirected_to(worker.interrupt):
                summary = worker.train(order, follower)
            spent = spent_by(summary, self._spent)
            for grant in bundle.grants:
                require_privacy_met(grant, spent)
            self._spent = spent  # only here: a run that releases no weights spends nothing
        except TrainerError as error:
            logs.log_error("training failed", error)
            # After SIGTERM, a worker that does not save its state in time is killed: that is an interruption too.
            was_killed = self.termination.signalled and error.code is ErrorCode.WORKER_DIED
            failure = JobError(ErrorCode.INTERRUPTED, INTERRUPTED_MESSAGE) if was_killed else error
        except Exception as error:  # noqa: BLE001 -- reported under seal, never in public
            logs.private.exception("internal error in training")
            failure = JobError(
                ErrorCode.INTERNAL,
                f"internal error: {type(error).__name__}",
                hint="see logs/job.log",
            )
        finally:
            worker.end()
            checkpoints.keys.destroy()  # no checkpoint is sealed after this; another start derives them again
        at_fault = None
        if isinstance(bundle, Pool) and isinstance(failure, DataError):
            at_fault = number_in_pool(failure.file or "")
        has_trained = follower is not None and follower.has_trained
        if follower is not None:
            # What this worker has published counts for the next one too.
            self._releases = follower.releases_left
        is_refused = failure is not None and failure.code in DATASET_FAULTS and not has_trained
        if isinstance(bundle, Pool) and at_fault is None:
            is_refused = False  # no other dataset of a single provider would mend it
        return JobOutcome(
            started,
            int(time.time()),
            summary,
            failure,
            checkpoints.last,
            privacy=self._spent,
            refused=is_refused,
            at_fault=at_fault,
        )

    def _training_order(
        self, bundle: ReceivedDataset, checkpoints: CheckpointStore
    ) -> protocol.TrainingOrder:
        workspace = self.hand_over.workspace
        resume_dir = workspace.dataset / "checkpoint"
        is_resumed = checkpoints.resume(resume_dir) is not None
        if is_resumed:
            self._grant_worker_access()
        return protocol.TrainingOrder(
            spec=self.spec,
            model_dir=workspace.model,
            data_files=dict(bundle.files),
            output_dir=workspace.output,
            split_key=bundle.manifest.split_key().hex(),
            resume_dir=resume_dir if is_resumed else None,
        )

    def _follower(self, bundle: ReceivedDataset, checkpoints: CheckpointStore) -> TrainingFollower:
        """Returns the handler of the worker's messages, which releases what becomes public."""
        disclosures = TrainingDisclosures(
            front=self.processes.front,
            spec=self.spec,
            grants=bundle.grants,
            folder=self.hand_over.ciphertext.folder,
            replaceable_bytes=checkpoints.own_bytes,
            set_status=self.set_status,
            public=self.public,
        )
        output, termination = self.hand_over.workspace.output, self.termination
        return TrainingFollower(
            self.spec,
            output,
            checkpoints,
            disclosures,
            lambda: termination.signalled,
            releases=self._releases,
        )
