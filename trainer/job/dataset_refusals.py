"""What a start of the job remembers of the datasets that it refused, and what its public status says of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.errors import ErrorCode, SealingError
from trainer.job.end_record import EndRecord
from trainer.sealing.bundle import Grant


@dataclass(frozen=True)
class Refusal:
    """What the public status says after a refused upload or re-grant.

    Attributes:
        error: public code.
        report_bytes: size of the sealed report; None if there is none.
        number: that of the provider whom the report is for, in a joint job.
    """

    error: ErrorCode
    report_bytes: int | None = None
    number: int | None = None


@dataclass
class DatasetRefusals:
    """The refused datasets of one start of the job.

    Attributes:
        shown: what the status says while the job waits; None says nothing.
    """

    shown: Refusal | None = field(default=None, init=False)
    _grants: dict[str, Refusal] = field(default_factory=dict, init=False)

    def note_report(self, grant: Grant, report: EndRecord, number: int | None) -> None:
        """Notes that an opened dataset was refused with a sealed report, which replaces the one before."""
        assert report.error is not None  # noqa: S101 -- a report on a refused dataset
        self._grants = {known: Refusal(old.error) for known, old in self._grants.items()}
        self.shown = Refusal(report.error, report.result_bytes, number)
        self._grants[grant.sha256()] = self.shown

    def note_unopened(self, code: ErrorCode, grant_sha256: str | None) -> None:
        """Notes that a dataset or a re-grant was refused without a report; None: before its grant was known."""
        # Its provider may have missed the report: while it is the last one, the status announces it again.
        self.shown = self._grants.get(grant_sha256 or "", Refusal(code))

    def note_admitted(self, number: int) -> None:
        """Notes that a dataset of a provider of a joint job is in.

        A report stays announced until its own provider has sent another dataset.
        """
        if self.shown is not None and self.shown.number in {None, number}:
            self.shown = None

    def require_not_refused(self, grant: Grant) -> None:
        """Requires that no dataset with this grant was refused; its secret makes each sealed dataset another one.

        Raises:
            SealingError: one was, with this code.
        """
        if (refusal := self._grants.get(grant.sha256())) is not None:
            raise SealingError(refusal.error, "the dataset with this grant was refused before")
