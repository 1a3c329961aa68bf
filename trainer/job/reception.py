"""The reception of datasets: uploads are taken until one opens, over all tries of one start of the job.

Anyone can upload, so what does not open costs no try: it is refused with a public code, and nobody learns more.
A dataset that opened and was refused is refused again without a try: whoever saw its ciphertext, such as the
operator, could send it again, and would use up the tries of other providers.

A joint job waits until a dataset of each provider has opened. Their ciphertext stays until the job ends: each
further try opens those again that were not refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer import logs
from trainer.errors import ErrorCode, SealingError, UnavailableError
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.end_record import EndRecord
from trainer.job.front_process import FrontProcess
from trainer.job.hand_over import PhaseChange
from trainer.job.job_keys import JobKeys
from trainer.job.tree_removal import remove_tree
from trainer.job.withdrawals import Withdrawals
from trainer.models import Phase
from trainer.sealing.bundle import BundleLimits, Grant, OpenedBundle
from trainer.sealing.pool import (
    Pool,
    ReceivedDataset,
    require_fits_pool,
    require_joint_terms,
    require_same_recipients,
)
from trainer.sealing.seal import open_bundle
from trainer.spec import JobSpec
from trainer.spec.pool_names import pool_folder


@dataclass(frozen=True)
class _Refusal:
    """What the public status says after a refused upload.

    Attributes:
        error: public code.
        report_bytes: size of the sealed report; None if there is none.
        number: that of the provider whom the report is for, in a joint job.
    """

    error: ErrorCode
    report_bytes: int | None = None
    number: int | None = None


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
    _members: dict[int, OpenedBundle] = field(default_factory=dict, init=False)
    _admitted: dict[int, str] = field(default_factory=dict, init=False)
    _withdrawn: set[int] = field(default_factory=set, init=False)
    _withdrawals: Withdrawals = field(init=False)

    def __post_init__(self) -> None:
        exchange = self.spec.exchange
        self._withdrawals = Withdrawals(
            exchange.providers if exchange.joint else (), self.spec.sha256()
        )

    def receive(self, into: Path) -> ReceivedDataset:
        """Returns the first dataset that opens, or in a joint job the pool of those of all its providers.

        Args:
            into: empty directory for its files.

        Raises:
            JobError: `dataset-timeout`: none did within `dataset_timeout_seconds` after the first wait of this
                start; or the front ended.
        """
        # Once: a stranger who has one dataset after another refused gains no time.
        if self._deadline is None:
            self._deadline = self.clock() + self.spec.exchange.dataset_timeout_seconds
        return (
            self._receive_pool(into)
            if self.spec.exchange.joint
            else self._receive_one(into, self._deadline)
        )

    def _receive_pool(self, into: Path) -> Pool:
        self._members = {}
        for number in range(1, len(self.spec.exchange.providers) + 1):
            if self.ciphertext.member(number).exists():
                self._open_member(number, into)
        assert self._deadline is not None  # noqa: S101 -- `receive` has set it
        # The last look is after the last dataset has opened. What arrives later finds the job in training.
        while self._lacks_a_dataset(into):
            bundle = self._receive_one(into, self._deadline)
            number = self._number_of(bundle)
            self.ciphertext.dataset.replace(self.ciphertext.member(number))
            self._admit(number, bundle, into)
            # A report stays announced until its provider has sent another dataset.
            if self._shown is not None and self._shown.number in {None, number}:
                self._shown = None
        return Pool(tuple(self._members[number] for number in sorted(self._members)))

    def _lacks_a_dataset(self, into: Path) -> bool:
        self._withdraw(into)
        return len(self._members) < len(self.spec.exchange.providers)

    def _withdraw(self, into: Path) -> bool:
        """Takes out the datasets that their providers have taken back since the last call; returns whether any.

        Their rows and their ciphertext are removed.
        """
        found = [self._withdrawals.add(token) for token in self.front.take_withdrawals()]
        new = [withdrawal for withdrawal in found if withdrawal is not None]
        for provider, grant_sha256 in new:
            number = self.spec.exchange.providers.index(provider) + 1
            if number in self._members and self._admitted[number] == grant_sha256:
                del self._members[number], self._admitted[number]
                remove_tree(into / pool_folder(number))
                self.ciphertext.member(number).unlink(missing_ok=True)
            if number not in self._members:
                self._withdrawn.add(number)
                self.public(logs.DatasetWithdrawn(number))
        return bool(new)

    def _open_member(self, number: int, into: Path) -> None:
        """Opens what an earlier try or start has kept; the operator may have put something else in its place."""
        try:
            bundle = self._open(self.ciphertext.member(number), into)
        except (SealingError, UnavailableError) as error:
            logs.log_error("a dataset that was kept is not used", error)
            self._note_unopened(error.code, was_left=True)
        else:
            known = self._admitted.get(number, bundle.grant.sha256())
            if self._number_of(bundle) == number and bundle.grant.sha256() == known:
                self._admit(number, bundle, into)
                return
            remove_tree(into / "data")
            logs.private.warning("a dataset that was kept was replaced by another one")
        self.ciphertext.member(number).unlink(missing_ok=True)

    def _admit(self, number: int, bundle: OpenedBundle, into: Path) -> None:
        """Adds a bundle to the pool: its files go to a directory of their own."""
        folder = into / pool_folder(number)
        (into / "data").rename(folder)
        files = {name: folder / name for name in bundle.files}
        self._members[number] = replace(bundle, files=files)
        self._admitted[number] = bundle.grant.sha256()
        self._withdrawn.discard(number)
        self._phase = Phase.AWAITING_DATASET

    def _number_of(self, bundle: OpenedBundle) -> int:
        assert bundle.provider is not None  # noqa: S101 -- providers are listed, so it is signed by one of them
        return self.spec.exchange.providers.index(bundle.provider) + 1

    def _receive_one(self, into: Path, deadline: float) -> OpenedBundle:
        while True:
            was_left, self.left_over = self.left_over, None
            size = was_left if was_left is not None else self._wait(deadline, into)
            self.public(logs.DatasetReceived(size))
            self.enter(Phase.OPENING)
            try:
                bundle = self._open(self.ciphertext.dataset, into)
            except (
                SealingError,
                UnavailableError,
            ) as error:  # UnavailableError: larger than the workspace
                logs.log_error("an upload was refused", error)
                self._note_unopened(error.code, was_left=was_left is not None)
                self.ciphertext.remove_dataset()
            else:
                if not (self.ciphertext.persistent or self.spec.exchange.joint):
                    self.ciphertext.remove_dataset()
                return bundle

    def note_refusal(self, grant: Grant, report: EndRecord, number: int | None = None) -> None:
        """Notes that an opened dataset was refused with a sealed report; removes its ciphertext.

        A later start must not find it and refuse it once more.

        Args:
            grant: that of the dataset.
            report: the report.
            number: that of its provider, in a joint job.
        """
        if number is not None:
            self.ciphertext.member(number).unlink(missing_ok=True)
            self._admitted.pop(number, None)
        self.ciphertext.remove_dataset()
        assert report.error is not None  # noqa: S101 -- a report on a refused dataset
        # The report before it has been replaced.
        self._refused_grants = {
            grant: _Refusal(old.error) for grant, old in self._refused_grants.items()
        }
        self._phase, self._shown = (
            Phase.AWAITING_DATASET,
            _Refusal(report.error, report.result_bytes, number),
        )
        self._refused_grants[grant.sha256()] = self._shown

    def _wait(self, deadline: float, into: Path) -> int:
        def withdraw() -> None:
            if self._withdraw(into):
                self._announce_wait()

        self._announce_wait()
        return self.front.wait_upload(
            deadline - self.clock(), self.keys.upload_scope(self.spec.sha256()), withdraw
        )

    def _announce_wait(self) -> None:
        shown = self._shown
        self.enter(
            self._phase,
            error=shown.error if shown else None,
            result_bytes=shown.report_bytes if shown else None,
            received=tuple(sorted(self._members)),
            withdrawn=tuple(sorted(self._withdrawn)),
        )

    def _open(self, source: Path, into: Path) -> OpenedBundle:
        self._opening = None
        exchange = self.spec.exchange
        bundle = open_bundle(
            source,
            self.keys.identities,
            self.spec.sha256(),
            into,
            now=int(time.time()),
            limits=BundleLimits(max_bytes=exchange.max_upload_bytes),
            providers=exchange.providers,
            check_grant=self._check_grant,
        )
        try:
            if exchange.joint:
                self._require_admissible(bundle)
        except SealingError:
            remove_tree(into / "data")
            raise
        return bundle

    def _require_admissible(self, bundle: OpenedBundle) -> None:
        """Requires that a bundle of a joint job, whose signer is known now, may be added to the pool.

        Raises:
            SealingError: GRANTS_DIFFER, DATASET_DUPLICATE, GRANT_WITHDRAWN; BUNDLE_INVALID: too many files.
        """
        require_joint_terms(bundle.grant, self.spec.exchange.providers, bundle.provider)
        require_fits_pool(bundle.files, len(self.spec.exchange.providers))
        assert bundle.provider is not None  # noqa: S101 -- providers are listed, so it is signed by one of them
        self._withdrawals.require_not_withdrawn(bundle.provider, bundle.grant.sha256())
        if self._number_of(bundle) in self._members:
            # It stays as it is: whoever saw the ciphertext of an earlier one could replace the later one by it.
            raise SealingError(
                ErrorCode.DATASET_DUPLICATE, "there is a dataset of this provider already"
            )

    def _check_grant(self, grant: Grant) -> None:
        """Requires that the grant fits the job and, in a joint job, the grants of the providers whose data is in.

        No dataset with it may have been refused; its secret makes each sealed dataset another one.

        Raises:
            SealingError: GRANTS_DIFFER; or a dataset was refused, with this code.
        """
        require_joint_terms(
            grant, self.spec.exchange.providers if self.spec.exchange.joint else (), None
        )
        for member in self._members.values():
            require_same_recipients(grant, member.grant)
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
