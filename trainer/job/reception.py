"""The reception of datasets: uploads are taken until one opens, over all tries of one start of the job.

Anyone can upload, so what does not open costs no try: it is refused with a public code, and nobody learns more.
A dataset that opened and was refused is refused again without a try: whoever saw its ciphertext, such as the
operator, could send it again, and would use up the tries of other providers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trainer import logs
from trainer.errors import ErrorCode, SealingError, UnavailableError
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.end_record import EndRecord
from trainer.job.front_process import FrontProcess
from trainer.job.hand_over import PhaseChange
from trainer.job.job_keys import JobKeys
from trainer.models import Phase
from trainer.sealing.bundle import BundleLimits, Grant, OpenedBundle
from trainer.sealing.seal import open_bundle
from trainer.spec import JobSpec


@dataclass(frozen=True)
class _Refusal:
    """What the public status says after a refused upload: a code, and the size of a sealed report in bytes."""

    error: ErrorCode
    report_bytes: int | None = None


@dataclass
class Reception:
    """Receives the datasets of one start of the job.

    Args:
        front: takes uploads.
        keys: open datasets.
        spec: the job spec.
        ciphertext: where the front puts the sealed dataset.
        enter: publishes a phase.
        public: publishes an event.
        left_over: size in bytes of a sealed dataset from before this start; None without one.
        clock: returns monotonic seconds.
    """

    front: FrontProcess
    keys: JobKeys
    spec: JobSpec
    ciphertext: CiphertextDirectory
    enter: PhaseChange
    public: Callable[[logs.PublicEvent], None]
    left_over: int | None = None
    clock: Callable[[], float] = time.monotonic
    _deadline: float | None = field(default=None, init=False)
    _phase: Phase = field(default=Phase.AWAITING_DATASET, init=False)
    _shown: _Refusal | None = field(default=None, init=False)
    _refused_grants: dict[str, _Refusal] = field(default_factory=dict, init=False)
    _opening: str | None = field(default=None, init=False)

    def receive(self, into: Path) -> OpenedBundle:
        """Returns the first dataset that opens.

        Args:
            into: empty directory for its files.

        Raises:
            JobError: `dataset-timeout`: none did within `dataset_timeout_seconds` after the first wait of this
                start; or the front ended.
        """
        if self._deadline is None:  # once: a stranger who has one dataset after another refused gains no time
            self._deadline = self.clock() + self.spec.exchange.dataset_timeout_seconds
        while True:
            was_left, self.left_over = self.left_over, None
            size = was_left if was_left is not None else self._wait(self._deadline)
            self.public(logs.DatasetReceived(size))
            self.enter(Phase.OPENING)
            try:
                bundle = self._open(into)
            except (SealingError, UnavailableError) as error:  # UnavailableError: larger than the workspace
                logs.log_error("an upload was refused", error)
                self._note_unopened(error.code, was_left=was_left is not None)
                self.ciphertext.remove_dataset()
            else:
                if not self.ciphertext.persistent:
                    self.ciphertext.remove_dataset()
                return bundle

    def note_refusal(self, bundle: OpenedBundle, report: EndRecord) -> None:
        """Notes that an opened dataset was refused with a sealed report; removes its ciphertext.

        A later start must not find it and refuse it once more.
        """
        self.ciphertext.remove_dataset()
        assert report.error is not None  # noqa: S101 -- a report on a refused dataset
        # The report before it has been replaced.
        self._refused_grants = {grant: _Refusal(old.error) for grant, old in self._refused_grants.items()}
        self._phase, self._shown = Phase.AWAITING_DATASET, _Refusal(report.error, report.result_bytes)
        self._refused_grants[bundle.grant.sha256()] = self._shown

    def _wait(self, deadline: float) -> int:
        shown = self._shown
        self.enter(
            self._phase,
            error=shown.error if shown else None,
            result_bytes=shown.report_bytes if shown else None,
        )
        return self.front.wait_upload(deadline - self.clock(), self.keys.upload_scope(self.spec.sha256()))

    def _open(self, into: Path) -> OpenedBundle:
        self._opening = None
        return open_bundle(
            self.ciphertext.dataset,
            self.keys.identities,
            self.spec.sha256(),
            into,
            now=int(time.time()),
            limits=BundleLimits(max_bytes=self.spec.exchange.max_upload_bytes),
            providers=self.spec.exchange.providers,
            check_grant=self._require_not_refused,
        )

    def _require_not_refused(self, grant: Grant) -> None:
        """Requires that no dataset with this grant was refused; its secret makes each sealed dataset another one.

        Raises:
            SealingError: one was, with this code.
        """
        self._opening = grant.sha256()
        if (refusal := self._refused_grants.get(self._opening)) is not None:
            raise SealingError(refusal.error, "the dataset with this grant was refused before")

    def _note_unopened(self, code: ErrorCode, *, was_left: bool) -> None:
        if was_left and code is ErrorCode.NO_IDENTITY_MATCH:
            # Sealed to the instance key of an earlier start, which ended with it. Nothing is wrong with the
            # dataset, but its provider has to verify this start before anything is trained.
            self._phase = Phase.AWAITING_GRANT
            return
        # Its provider may have missed the report: while it is the last one, the status announces it again.
        self._shown = self._refused_grants.get(self._opening or "", _Refusal(code))
