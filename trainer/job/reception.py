"""The reception of datasets: uploads are taken until one opens, over all tries of one start of the job.

Anyone can upload, so what does not open costs no try: it is refused with a public code, and nobody learns more.
A dataset that opened and was refused is refused again without a try: whoever saw its ciphertext, such as the
operator, could send it again, and would use up the tries of other providers.

A sealed dataset from before a restart is tried first. If it is sealed to a key that ended with an earlier start,
or its grant has expired, it is set aside, and the job waits in `awaiting-grant`: until its provider, who verified
this start, grants it again, or another dataset opens. No upload and no re-grant that is refused costs it.

A joint job waits until a dataset of each provider has opened. Their ciphertext stays until the job ends: each
further try opens those again that were not refused. After a restart each provider grants its own one again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer import logs
from trainer.errors import ErrorCode, SealingError, UnavailableError
from trainer.ipc.front_messages import RegrantReady
from trainer.job.ciphertext import CiphertextDirectory, FileIdentity
from trainer.job.dataset_origin import AWAIT_GRANT, FILE_FAULTS, DatasetOrigin
from trainer.job.dataset_refusals import DatasetRefusals
from trainer.job.end_record import EndRecord
from trainer.job.front_process import Arrival, FrontProcess
from trainer.job.hand_over import PhaseChange
from trainer.job.job_keys import JobKeys
from trainer.job.pool_members import PoolMembers
from trainer.job.tree_removal import remove_tree
from trainer.models import Phase
from trainer.sealing.bundle import BundleLimits, Grant, OpenedBundle
from trainer.sealing.pool import Pool, ReceivedDataset
from trainer.sealing.regrant import Regrant, parse_regrant
from trainer.sealing.seal import open_bundle
from trainer.spec import JobSpec
from trainer.spec.pool_names import pool_folder

_ONLY_PROVIDER: Final = 1
"""The number under which a job of one provider retains its dataset."""


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
        spooled: identity of one that lies in a spool, whose front reports it as an upload; None without one.
        clock: returns monotonic seconds.
    """

    front: FrontProcess
    keys: JobKeys
    spec: JobSpec
    ciphertext: CiphertextDirectory
    enter: PhaseChange
    public: Callable[[logs.PublicEvent], None]
    left_over: int | None = None
    spooled: FileIdentity | None = None
    clock: Callable[[], float] = time.monotonic
    _deadline: float | None = field(default=None, init=False)
    _opening: str | None = field(default=None, init=False)
    _refusals: DatasetRefusals = field(default_factory=DatasetRefusals, init=False)
    _retained: dict[int, Path] = field(default_factory=dict, init=False)
    _members: PoolMembers = field(init=False)

    def __post_init__(self) -> None:
        self._members = PoolMembers(self.spec.exchange, self.spec.sha256())

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
        if self.spec.exchange.joint:
            return self._receive_pool(into, self._deadline)
        return self._receive_one(into, self._deadline)[0]

    def _receive_pool(self, into: Path, deadline: float) -> Pool:
        self._members.begin_try()
        for number in range(1, len(self.spec.exchange.providers) + 1):
            if self.ciphertext.member(number).exists():
                self._open_member(number, into)
        while True:
            # The last look is after the last dataset has opened. What arrives later finds the job in training.
            self._withdraw(into)
            if self._members.is_complete:
                return self._members.pool()
            bundle, regrant = self._receive_one(into, deadline)
            number = self._members.admit(bundle, into, regrant)
            self._refusals.note_admitted(number)

    def _withdraw(self, into: Path) -> bool:
        """Takes out the datasets that their providers have taken back since the last call; returns whether any.

        Their rows and their ciphertext are removed. One that waits to be granted again goes when it is: nobody
        knows its grant before.
        """
        tokens = self.front.take_withdrawals()
        new = [found for token in tokens if (found := self._members.withdraw(token)) is not None]
        for number, was_in in new:
            if was_in:
                remove_tree(into / pool_folder(number))
                self.ciphertext.member(number).unlink(missing_ok=True)
            if number in self._members.withdrawn:
                self.public(logs.DatasetWithdrawn(number))
        return bool(new)

    def _open_member(self, number: int, into: Path) -> None:
        """Opens what an earlier try or start has kept; the operator may have put something else in its place."""
        source, regrant = self.ciphertext.member(number), self._members.regrant(number)
        try:
            bundle = self._open(source, into, regrant, retained_as=number)
        except (SealingError, UnavailableError) as error:
            logs.log_error("a dataset that was kept is not used", error)
            if error.code in AWAIT_GRANT:
                self._retained[number] = source
                return
            self._refusals.note_unopened(error.code, self._opening)
            source.unlink(missing_ok=True)
        else:
            self._members.admit(bundle, into, regrant)

    def _receive_one(self, into: Path, deadline: float) -> tuple[OpenedBundle, Regrant | None]:
        """Returns the next dataset that opens, and the re-grant that it was opened with."""
        while True:
            arrival, regrant = self._next_arrival(deadline, into), None
            self.enter(Phase.OPENING)
            try:
                if arrival is DatasetOrigin.REGRANT:
                    regrant = parse_regrant(self.ciphertext.take_regrant())
                    bundle = self._open_retained(regrant, into)
                else:
                    bundle = self._open(self.ciphertext.dataset, into)
            except (
                SealingError,
                UnavailableError,
            ) as error:  # the latter: larger than the workspace
                logs.log_error("an upload was refused", error)
                self._note_unopened(arrival, error.code)
            else:
                self._note_opened(arrival, bundle)
                return bundle, regrant

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
            self._members.remove(number)
        self.ciphertext.remove_dataset()
        self._refusals.note_report(grant, report, number)

    def _next_arrival(self, deadline: float, into: Path) -> DatasetOrigin:
        """Returns what to open next: what lay there before this start, or else what arrives."""
        size, self.left_over = self.left_over, None
        arrival = DatasetOrigin.LEFT_OVER
        if size is None:
            message = self._wait(deadline, into)
            if isinstance(message, RegrantReady):
                return DatasetOrigin.REGRANT
            size, is_spooled = message.size, self.spooled is not None
            if not is_spooled or self.ciphertext.dataset_identity() != self.spooled:
                arrival = DatasetOrigin.UPLOAD
        self.public(logs.DatasetReceived(size))
        return arrival

    def _wait(self, deadline: float, into: Path) -> Arrival:
        def withdraw() -> None:
            if self._withdraw(into):
                self._announce_wait()

        self._announce_wait()
        return self.front.wait_arrival(
            deadline - self.clock(),
            self.keys.upload_scope(self.spec.sha256()),
            regrant=bool(self._retained),
            on_withdrawal=withdraw,
        )

    def _announce_wait(self) -> None:
        shown, phase = self._refusals.shown, Phase.AWAITING_DATASET
        if self._retained:
            phase = Phase.AWAITING_GRANT
        self.enter(
            phase,
            error=shown.error if shown else None,
            result_bytes=shown.report_bytes if shown else None,
            received=self._members.numbers,
            withdrawn=self._members.withdrawn,
            retained=tuple(sorted(self._retained)) if self.spec.exchange.joint else (),
        )

    def _open_retained(self, regrant: Regrant, into: Path) -> OpenedBundle:
        """Opens the dataset that waits for this re-grant.

        Raises:
            SealingError: no dataset does (REGRANT_INVALID); or it does not open.
            UnavailableError: it is larger than the workspace.
        """
        self._opening, number = None, _ONLY_PROVIDER
        if self.spec.exchange.joint:
            signature = regrant.signature
            number = self._members.number_of(signature.provider if signature else None)
        if (source := self._retained.get(number)) is None:
            raise SealingError(
                ErrorCode.REGRANT_INVALID, "no dataset of who signed the re-grant waits for it"
            )
        try:
            return self._open(source, into, regrant, retained_as=number)
        except (SealingError, UnavailableError) as error:
            # Its provider granted it, so it was this file that does not open: it has to be sent again. Anyone
            # can send a re-grant, which then says nothing about the file.
            if self._opening is not None and error.code in FILE_FAULTS:
                self.ciphertext.remove(self._retained.pop(number))
            raise

    def _open(
        self,
        source: Path,
        into: Path,
        regrant: Regrant | None = None,
        *,
        retained_as: int | None = None,
    ) -> OpenedBundle:
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
            regrant=regrant,
            instance=self.keys.recipients.instance,
        )
        try:
            if exchange.joint:
                self._members.require_admissible(bundle, retained_as)
        except SealingError:
            remove_tree(into / "data")
            raise
        return bundle

    def _check_grant(self, grant: Grant) -> None:
        """Requires that the grant fits the job and those of the datasets that are in, and was not refused.

        Raises:
            SealingError: GRANTS_DIFFER; or a dataset was refused, with this code.
        """
        self._members.require_fitting_grant(grant)
        self._opening = grant.sha256()
        self._refusals.require_not_refused(grant)

    def _note_opened(self, arrival: DatasetOrigin, bundle: OpenedBundle) -> None:
        """Leaves the dataset that opened, and no other of its provider, where the next try or start finds it."""
        if self.spec.exchange.joint:
            number = self._members.number_of(bundle.provider)
            self._retained.pop(number, None)
            if arrival is not DatasetOrigin.REGRANT:
                self.ciphertext.dataset.replace(self.ciphertext.member(number))
            return
        self._retained.clear()
        if arrival is DatasetOrigin.REGRANT:
            self.ciphertext.remove_dataset()
            self.ciphertext.restore_dataset()
        self.ciphertext.remove(self.ciphertext.retained_dataset)
        if not self.ciphertext.persistent:
            self.ciphertext.remove_dataset()

    def _note_unopened(self, arrival: DatasetOrigin, code: ErrorCode) -> None:
        if arrival is DatasetOrigin.LEFT_OVER and code in AWAIT_GRANT:
            # Nothing is wrong with the dataset, but its provider has to verify this start first.
            if self.spec.exchange.joint:
                self.ciphertext.remove_dataset()  # nobody knows whose it is: it never opened
            else:
                self.ciphertext.retain_dataset()
                self._retained[_ONLY_PROVIDER] = self.ciphertext.retained_dataset
            return
        if arrival is not DatasetOrigin.REGRANT:
            self.ciphertext.remove_dataset()
        self._refusals.note_unopened(code, self._opening)
