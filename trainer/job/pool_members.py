"""The members of a joint job: the opened datasets of its providers, and what may be added to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.errors import ErrorCode, SealingError
from trainer.job.withdrawals import Withdrawals
from trainer.sealing.bundle import Grant, OpenedBundle
from trainer.sealing.pool import (
    Pool,
    require_fits_pool,
    require_joint_terms,
    require_same_recipients,
)
from trainer.sealing.regrant import Regrant
from trainer.spec import ExchangeSection
from trainer.spec.pool_names import pool_folder


@dataclass
class PoolMembers:
    """The datasets that are in, over all tries of one start of the job.

    Args:
        exchange: lists the providers; without `joint` there are no members.
        job_spec_sha256: digest of the job spec, which a withdrawal names.
    """

    exchange: ExchangeSection
    job_spec_sha256: str
    _members: dict[int, OpenedBundle] = field(default_factory=dict, init=False)
    _grants: dict[int, str] = field(default_factory=dict, init=False)
    _regrants: dict[int, Regrant] = field(default_factory=dict, init=False)
    _withdrawn: set[int] = field(default_factory=set, init=False)
    _withdrawals: Withdrawals = field(init=False)

    def __post_init__(self) -> None:
        providers = self.exchange.providers if self.exchange.joint else ()
        self._withdrawals = Withdrawals(providers, self.job_spec_sha256)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the providers whose datasets are in."""
        return tuple(sorted(self._members))

    @property
    def withdrawn(self) -> tuple[int, ...]:
        """The numbers of the providers who have taken a dataset back and have none in."""
        return tuple(sorted(self._withdrawn))

    @property
    def is_complete(self) -> bool:
        """Whether the datasets of all providers are in."""
        return len(self._members) == len(self.exchange.providers)

    def pool(self) -> Pool:
        """Returns the datasets in the order of the providers in the job spec."""
        return Pool(tuple(self._members[number] for number in self.numbers))

    def begin_try(self) -> None:
        """Forgets what was opened; not which datasets it was, nor the re-grants that open them."""
        self._members = {}

    def regrant(self, number: int) -> Regrant | None:
        """Returns the re-grant that opened the dataset of a provider in this start; None without one."""
        return self._regrants.get(number)

    def remove(self, number: int) -> None:
        """Notes that the dataset of a provider was refused: another one may take its place."""
        self._grants.pop(number, None)
        self._regrants.pop(number, None)

    def withdraw(self, token: str) -> tuple[int, bool] | None:
        """Takes the dataset out that a withdrawal names, and admits it no more.

        Args:
            token: as a front passed it on.

        Returns:
            The number of its provider, and whether the dataset was in; None if it is no withdrawal, or no new one.
        """
        found = self._withdrawals.add(token)
        if found is None:
            return None
        provider, grant_sha256 = found
        number = self.number_of(provider)
        was_in = number in self._members and self._grants[number] == grant_sha256
        if was_in:
            del self._members[number]
            self.remove(number)
        if number not in self._members:
            self._withdrawn.add(number)
        return number, was_in

    def admit(self, bundle: OpenedBundle, into: Path, regrant: Regrant | None) -> int:
        """Adds a bundle, whose files go to a directory of their own; returns the number of its provider."""
        number = self.number_of(bundle.provider)
        folder = into / pool_folder(number)
        (into / "data").rename(folder)
        files = {name: folder / name for name in bundle.files}
        self._members[number] = replace(bundle, files=files)
        self._grants[number] = bundle.grant.sha256()
        self._withdrawn.discard(number)
        self._regrants.pop(number, None)
        if regrant is not None:
            self._regrants[number] = regrant
        return number

    def number_of(self, provider: str | None) -> int:
        """Returns the number of a listed provider, from 1; 0 for anyone else."""
        providers = self.exchange.providers
        return providers.index(provider) + 1 if provider in providers else 0

    def require_fitting_grant(self, grant: Grant) -> None:
        """Requires that a grant fits the job and, in a joint job, the grants of the providers whose data is in.

        Raises:
            SealingError: GRANTS_DIFFER.
        """
        require_joint_terms(grant, self.exchange.providers if self.exchange.joint else (), None)
        for member in self._members.values():
            require_same_recipients(grant, member.grant)

    def require_admissible(self, bundle: OpenedBundle, retained_as: int | None) -> None:
        """Requires that a bundle, whose signer is known now, may be added.

        Args:
            bundle: it has opened.
            retained_as: number of the provider as whose dataset it was kept; None: it came now.

        Raises:
            SealingError: GRANTS_DIFFER, DATASET_DUPLICATE, GRANT_WITHDRAWN; BUNDLE_INVALID: too many files, or not
                what was kept.
        """
        require_joint_terms(bundle.grant, self.exchange.providers, bundle.provider)
        require_fits_pool(bundle.files, len(self.exchange.providers))
        number = self.number_of(bundle.provider)
        assert bundle.provider is not None  # noqa: S101 -- providers are listed, so it is signed by one of them
        self._withdrawals.require_not_withdrawn(bundle.provider, bundle.grant.sha256())
        if number in self._members:
            # It stays as it is: whoever saw the ciphertext of an earlier one could replace the later one by it.
            raise SealingError(
                ErrorCode.DATASET_DUPLICATE, "there is a dataset of this provider already"
            )
        # The operator, who may have put another one in its place, cannot choose among those of one provider.
        known = self._grants.get(number, bundle.grant.sha256())
        if retained_as is not None and (number, bundle.grant.sha256()) != (retained_as, known):
            raise SealingError(
                ErrorCode.BUNDLE_INVALID, "a dataset that was kept was replaced by another one"
            )
