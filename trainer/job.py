"""The one-shot job, stage after stage. It runs as the supervisor: it has the keys, and no network.

starting → preparing → awaiting-dataset → opening → training → sealing → awaiting-pull → done | failed
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from pydantic import JsonValue

from trainer import __version__, logs
from trainer.attestation.binding import gpu_evidence_sha256
from trainer.attestation.compose import compose_hash
from trainer.attestation.evidence import DatasetClaims, Evidence, GpuEvidence
from trainer.confinement import privileges
from trainer.confinement.confine import Walls
from trainer.confinement.walls import Wall
from trainer.encoding import canonical_json, file_sha256, sha256_hex
from trainer.errors import ErrorCode, ExitCode, JobError, SealingError, TrainerError, UnavailableError
from trainer.models import Phase, Status
from trainer.sealing.age import encrypt
from trainer.sealing.atomic import SHARED
from trainer.sealing.bundle import BundleLimits, Grant, OpenedBundle
from trainer.sealing.seal import open_bundle
from trainer.spec import JobSpec, read_job_spec
from trainer.supervisor.demands import require_kept, require_promised
from trainer.supervisor.front import Front
from trainer.supervisor.household import Household, demand_walls, household
from trainer.supervisor.keys import JobKeys, derive_keys
from trainer.supervisor.model import FETCH_SECONDS
from trainer.supervisor.plans import Places, share_with_worker
from trainer.supervisor.result import HANDED_OVER, Ending, Signer, seal_ending
from trainer.supervisor.worker import Worker
from trainer.supervisor.workspace import Workspace, open_workspace
from trainer.tee.evidence import collect
from trainer.tee.gpu import collect_gpu_evidence
from trainer.tee.guest_agent import GuestAgent
from trainer.worker import protocol

DATASET_FILE: Final = "dataset.age"
RESULT_FILE: Final = "result.tar.age"
INTERRUPTED_LINGER_SECONDS: Final = 30

_REPORTED_SOFTWARE: Final = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "unsloth",
    "opacus",
    "cryptography",
)


@dataclass(frozen=True)
class JobOptions:
    """What the operator decides: none of it changes what the job does, only where it lies.

    Args:
        spec: job.yaml.
        guest_agent: path of dstack's socket; None looks in its usual places.
        spool: exchange through files in this directory instead of HTTP.
        ciphertext: where sealed uploads and results wait under HTTP; None makes a temporary directory.
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
    with open_workspace(options.workspace) as workspace, _ciphertext_directory(options) as ciphertext:
        public = logs.take_over_output(workspace.private_log)
        public(logs.SpecLoaded(spec.sha256()))
        try:
            with _termination_is_an_error():
                return _Job(options, spec, workspace, ciphertext, public).run()
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
        self, options: JobOptions, spec: JobSpec, workspace: Workspace, ciphertext: Path, public: logs.PublicLog
    ) -> None:
        self.options = options
        self.spec = spec
        self.workspace = workspace
        self.ciphertext = ciphertext
        self.public = public
        self.agent = GuestAgent(options.guest_agent)
        self.status = Status(phase=Phase.STARTING)
        self.tls_spki_sha256: str | None = None
        self.walls: Walls = {}

    def run(self) -> ExitCode:
        """The story of the job."""
        self.public(logs.PhaseEntered(Phase.STARTING))
        privileges.keep_to_itself()
        app_compose = self.agent.info().app_compose
        with household(self.spec, self._places()) as house:
            self._settle(house)
            front = house.front
            keys = derive_keys(self.agent, self.spec.sha256())
            signer = Signer(self.agent, keys, self.spec, compose_hash(app_compose), software_versions())
            self._enter(front, Phase.PREPARING)
            house.fetch.wait(FETCH_SECONDS)
            front.serve_evidence(lambda nonce: self._evidence(nonce, keys))
            bundle = self._receive(front, keys)
            ending = self._train(front, house.worker, bundle)
            return self._hand_over(front, signer, bundle, ending)

    # starting

    def _places(self) -> Places:
        by_files, folder = self.options.spool is not None, self.options.spec.parent
        return Places(self.workspace, self.ciphertext, folder, by_files=by_files)

    def _settle(self, house: Household) -> None:
        """Say where the front listens; end here, before there are keys, where a demanded wall does not stand."""
        self.tls_spki_sha256, self.walls = house.ready.tls_spki_sha256, house.walls
        self.public(logs.Listening(house.ready.port, house.ready.tls_spki_sha256))
        demand_walls(self.spec.tee.sandbox, house.walls)

    def _enter(
        self, front: Front, phase: Phase, *, error: ErrorCode | None = None, result_bytes: int | None = None
    ) -> None:
        self.status = Status(
            phase=phase,
            step=self.status.step,
            total_steps=self.status.total_steps,
            error=error.value if error else None,
            result_bytes=result_bytes,
        )
        front.update(self.status)
        self.public(logs.PhaseEntered(phase))

    # awaiting-dataset

    def _evidence(self, nonce: str, keys: JobKeys) -> Evidence:
        gpu = collect_gpu_evidence(self.agent, nonce)
        claims = self._claims(nonce, keys, gpu)
        return collect(self.agent, claims, gpu=gpu, key_chain=keys.key_chain(claims))

    def _claims(self, nonce: str, keys: JobKeys, gpu: GpuEvidence) -> DatasetClaims:
        now = int(time.time())
        return DatasetClaims(
            version=1,
            purpose="dataset",
            nonce=nonce,
            job_spec_sha256=self.spec.sha256(),
            recipients=keys.recipients,
            receipt_key=keys.receipt_public_key,
            tls_spki_sha256=self.tls_spki_sha256,
            gpu_evidence_sha256=gpu_evidence_sha256(gpu),
            sandbox={wall.value: stands for wall, stands in sorted(self.walls.items())},
            software=dict(software_versions()),
            issued_at=now,
            expires_at=now + self.spec.tee.evidence_lifetime_seconds,
        )

    def _receive(self, front: Front, keys: JobKeys) -> OpenedBundle:
        """Take uploads until one opens. A stranger's garbage must not end the job."""
        deadline = time.monotonic() + self.spec.exchange.dataset_timeout_seconds
        refused: ErrorCode | None = None
        while True:
            self._enter(front, Phase.AWAITING_DATASET, error=refused)
            size = front.wait_upload(deadline - time.monotonic())
            self.public(logs.DatasetReceived(size))
            self._enter(front, Phase.OPENING)
            try:
                return self._open(keys)
            except (SealingError, UnavailableError) as error:  # the latter: more than the workspace can hold
                logs.private.exception("an upload was refused")
                refused = error.code
            finally:
                (self.ciphertext / DATASET_FILE).unlink(missing_ok=True)

    def _open(self, keys: JobKeys) -> OpenedBundle:
        bundle = open_bundle(
            self.ciphertext / DATASET_FILE,
            keys.identities,
            self.spec.sha256(),
            self.workspace.dataset,
            now=int(time.time()),
            limits=BundleLimits(max_bytes=self.spec.exchange.max_upload_bytes),
        )
        if self.walls.get(Wall.SEPARATE_USERS):
            share_with_worker(self.workspace.dataset)
        return bundle

    # training

    def _train(self, front: Front, worker: Worker, bundle: OpenedBundle) -> Ending:
        """Train; whatever goes wrong becomes an ending that the provider, and only the provider, can read."""
        started = int(time.time())
        summary: Mapping[str, JsonValue] = {}
        failure: TrainerError | None = None
        try:
            if bundle.grant.allow.private_progress:
                front.admit_token(sha256_hex(bundle.grant.token.encode()))
            self._enter(front, Phase.TRAINING)
            require_promised(bundle.grant, self.spec)
            summary = worker.train(self._order(bundle.files), lambda message: self._follow(front, bundle, message))
            require_kept(bundle.grant, summary)
        except TrainerError as error:
            logs.private.exception("training failed")
            failure = error
        except Exception as error:  # noqa: BLE001 -- reported under seal, never in public
            logs.private.exception("internal error in training")
            failure = JobError(
                ErrorCode.INTERNAL, f"internal error: {type(error).__name__}", hint="see logs/job.log"
            )
        finally:
            worker.end()
        return Ending(started, int(time.time()), summary, failure)

    def _order(self, files: Mapping[str, Path]) -> protocol.Order:
        place = self.workspace
        return protocol.Order(
            spec=self.spec, model_dir=place.model, data_files=dict(files), output_dir=place.output
        )

    def _follow(self, front: Front, bundle: OpenedBundle, message: protocol.Progress | protocol.Metrics) -> None:
        front.check()
        if isinstance(message, protocol.Progress):
            self.status = Status(
                phase=Phase.TRAINING,
                step=message.step,
                total_steps=message.total_steps,
                eta_seconds=message.eta_seconds,
            )
            front.update(self.status)
            self.public(logs.TrainingProgress(message.step, message.total_steps, message.eta_seconds))
        elif bundle.grant.allow.private_progress:
            front.private_event(_seal_text(canonical_json({"step": message.step, **message.values}), bundle.grant))

    # sealing and awaiting-pull

    def _hand_over(self, front: Front, signer: Signer, bundle: OpenedBundle, ending: Ending) -> ExitCode:
        self._enter(front, Phase.SEALING)
        if ending.failure is not None:
            self._make_room(keep_output=ending.failure.code in HANDED_OVER)
        target = self.ciphertext / RESULT_FILE
        size = seal_ending(signer, bundle, ending, self.workspace, target)
        target.chmod(SHARED)  # ciphertext: the front, another user, hands it out
        shutil.rmtree(self.workspace.dataset, ignore_errors=True)
        front.offer_result(size, file_sha256(target))
        self.public(logs.ResultSealed(size))
        if ending.failure is None:
            self._enter(front, Phase.AWAITING_PULL, result_bytes=size)
        else:
            self._enter(front, Phase.FAILED, error=ending.failure.code, result_bytes=size)
            self.public(logs.JobFailed(ending.failure.code))
        front.wait_acknowledged(self._linger_seconds(ending))
        if ending.failure is not None:
            return ExitCode.JOB
        self._enter(front, Phase.DONE)
        return ExitCode.DONE

    def _make_room(self, *, keep_output: bool) -> None:
        """What failed may have filled the workspace; the report of it has to fit in, and needs none of this."""
        output = () if keep_output else (self.workspace.output,)
        for folder in (self.workspace.model, *output, self.workspace.scratch):
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def _linger_seconds(self, ending: Ending) -> int:
        """How long the result is offered. Whoever sent SIGTERM follows it with SIGKILL: do not wait for that."""
        linger = self.spec.exchange.linger_seconds
        interrupted = ending.failure is not None and ending.failure.code is ErrorCode.INTERRUPTED
        return min(linger, INTERRUPTED_LINGER_SECONDS) if interrupted else linger


def _seal_text(text: bytes, grant: Grant) -> str:
    """An age file of `text`, in base64: the front carries it and cannot read it."""
    sealed = io.BytesIO()
    encrypt(io.BytesIO(text), sealed, grant.result_recipients())
    return base64.b64encode(sealed.getvalue()).decode()


def software_versions() -> dict[str, str]:
    """Versions of this package and of the libraries that shape the result, as installed."""
    versions = {"confidential-trainer": __version__}
    for name in _REPORTED_SOFTWARE:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if version:  # None, whatever its type says, where Landlock keeps the package's metadata from us
            versions[name] = version
    return versions


@contextmanager
def _ciphertext_directory(options: JobOptions) -> Iterator[Path]:
    named = options.spool or options.ciphertext
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named.resolve()  # the front has another working directory
        return
    with tempfile.TemporaryDirectory(prefix="trainer-ciphertext-") as folder:
        yield Path(folder)


@contextmanager
def _termination_is_an_error() -> Iterator[None]:
    """SIGTERM raises in the main thread, so that the job can still seal a report of what happened."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise JobError(ErrorCode.INTERRUPTED, "the job was told to end (SIGTERM)")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
