"""Where progress and metrics of a worker go: to public events, the front's status, and private events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import logs
from trainer.ipc.front_messages import PrivateEvent, StatusUpdate
from trainer.ipc.worker_messages import Metrics, OutputSize
from trainer.job.disclosure_budget import PreparationRelease, ProgressRelease
from trainer.job.front_process import FrontProcess
from trainer.job.private_events import seal_metrics
from trainer.job.storage_need import require_room
from trainer.models import Phase, Status
from trainer.sealing.bundle import Grant
from trainer.spec import JobSpec


@dataclass(frozen=True)
class TrainingDisclosures:
    """Discloses what a `TrainingFollower` releases.

    Args:
        front: gets the status, and private events for the provider.
        spec: the job spec.
        grants: say whether there are private events, and for whom; those of a joint job name the same recipients.
        folder: the ciphertext directory.
        replaceable_bytes: returns the size of what newer checkpoints replace there.
        set_status: receives the public status.
        public: publishes an event.
    """

    front: FrontProcess
    spec: JobSpec
    grants: tuple[Grant, ...]
    folder: Path
    replaceable_bytes: Callable[[], int]
    set_status: Callable[[Status], None]
    public: Callable[[logs.PublicEvent], None]

    def require_running(self) -> None:
        """Checks that the front still runs.

        Raises:
            JobError: FRONT_DIED.
        """
        self.front.require_running()

    def require_room(self, size: OutputSize) -> None:
        """Checks that checkpoints and result fit into the ciphertext directory.

        Raises:
            JobError: STORAGE_FULL.
        """
        require_room(self.folder, self.spec, size, self.replaceable_bytes())

    def publish(self, progress: ProgressRelease | PreparationRelease) -> None:
        """Makes progress public: in the front's status, and as a public event."""
        status = Status(phase=Phase.TRAINING, **vars(progress))
        self.set_status(status)
        self.front.send(StatusUpdate(status=status))
        is_step = isinstance(progress, ProgressRelease)
        self.public(
            (logs.TrainingProgress if is_step else logs.PreparationProgress)(**vars(progress))
        )

    def send_metrics(self, metrics: Sequence[Metrics]) -> None:
        """Sends the latest metrics in one private event, if every grant permits any."""
        if all(grant.allow.private_progress for grant in self.grants):
            self.front.send(PrivateEvent(sealed=seal_metrics(metrics, self.grants[0])))
