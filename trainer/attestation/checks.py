"""Checks of an appraisal: how one is defined, how it ends, and the ledger that collects the outcomes.

A check is one `CheckDefinition`. It is defined in the module whose function judges it, and `catalogue` puts the
definitions of one appraisal in order. A check that no function recorded is `not-reached`, and an appraisal passes
only if every check of its list is affirmed or was not demanded: a forgotten check fails the appraisal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class CheckState(StrEnum):
    """How a check ended, in the words of RATS (RFC 9334) and AR4SI where they have one."""

    AFFIRMED = "affirmed"
    CONTRAINDICATED = "contraindicated"
    NOT_DEMANDED = "not-demanded"
    NOT_REACHED = "not-reached"


class Submodule(StrEnum):
    """The parts of the evidence that an EAT Attestation Result appraises one by one (`submods`)."""

    TDX = "tdx"
    OS = "os"
    APP = "app"
    GPU = "gpu"
    JOB = "job"


class TrustClaim(StrEnum):
    """The AR4SI trustworthiness claims that this verifier makes; none about `file-system` or `sourced-data`."""

    INSTANCE_IDENTITY = "instance-identity"
    CONFIGURATION = "configuration"
    EXECUTABLES = "executables"
    HARDWARE = "hardware"
    RUNTIME_OPAQUE = "runtime-opaque"
    STORAGE_OPAQUE = "storage-opaque"


@dataclass(frozen=True, eq=False)
class CheckDefinition:
    """Everything that is fixed about one check; each definition equals only itself.

    Attributes:
        code: stable name, part of the contract with scripts.
        title: what the check demands, in one line.
        attack: the attack that it stops.
        claim: the submodule and the trustworthiness claim of the EAR that it counts towards; None for a check that
            only a receipt has, as receipts have no EAR.
        is_signature: whether its failure is a digest or a signature that does not match; AR4SI has a value of its
            own for that.
        hint: what a provider can do where it fails; None where the only answer is to refuse.
    """

    code: str
    title: str
    attack: str
    claim: tuple[Submodule, TrustClaim] | None = None
    is_signature: bool = False
    hint: str | None = None


@dataclass(frozen=True)
class Check:
    """The outcome of one check in one appraisal.

    Attributes:
        number: place in the list of checks, from 1.
        code: code of its definition.
        title: title of its definition.
        state: how it ended.
        expected: the value that would have been right.
        found: the value in the evidence.
        detail: the reason, where `expected` and `found` do not give it.
    """

    number: int
    code: str
    title: str
    state: CheckState
    expected: str | None = None
    found: str | None = None
    detail: str | None = None

    @property
    def acceptable(self) -> bool:
        """Whether an appraisal with this outcome can still pass."""
        return self.state in (CheckState.AFFIRMED, CheckState.NOT_DEMANDED)


class Ledger:
    """Collects the outcome of each check of one list, each exactly once.

    Args:
        definitions: the list of checks; the place of a check in it is its number.
    """

    def __init__(self, definitions: tuple[CheckDefinition, ...]) -> None:
        self._numbers = {definition: number for number, definition in enumerate(definitions, 1)}
        self._outcomes: dict[CheckDefinition, Check] = {}

    def judge(
        self,
        definition: CheckDefinition,
        holds: bool,
        *,
        expected: object,
        found: object,
        detail: str | None = None,
    ) -> bool:
        """Records a check as affirmed if `holds`, else as contraindicated.

        Returns:
            `holds`.

        Raises:
            ValueError: the check is not in this ledger's list, or already has an outcome.
        """
        state = CheckState.AFFIRMED if holds else CheckState.CONTRAINDICATED
        self._record(definition, state, expected, found, detail)
        return holds

    def compare(
        self,
        definition: CheckDefinition,
        *,
        expected: object,
        found: object,
        detail: str | None = None,
    ) -> bool:
        """Records a check as affirmed if `expected` equals `found`, else as contraindicated.

        Returns:
            Whether they are equal.

        Raises:
            ValueError: as for `judge`.
        """
        return self.judge(
            definition, expected == found, expected=expected, found=found, detail=detail
        )

    def leave_open(
        self, definition: CheckDefinition, *, found: object = None, detail: str | None = None
    ) -> None:
        """Records a check as not demanded by the policy.

        Raises:
            ValueError: as for `judge`.
        """
        self._record(definition, CheckState.NOT_DEMANDED, None, found, detail)

    def unreached(self, definitions: Iterable[CheckDefinition], why: str) -> None:
        """Records those of `definitions` that have no outcome yet as not reached."""
        for definition in definitions:
            if definition not in self._outcomes:
                self._record(definition, CheckState.NOT_REACHED, None, None, why)

    def checks(self) -> tuple[Check, ...]:
        """Returns the outcomes of all checks in order; those that nothing recorded are `not-reached`."""
        self.unreached(self._numbers, "an earlier check failed")
        return tuple(self._outcomes[definition] for definition in self._numbers)

    def _record(
        self,
        definition: CheckDefinition,
        state: CheckState,
        expected: object,
        found: object,
        detail: str | None,
    ) -> None:
        if definition not in self._numbers:
            raise ValueError(f"the check {definition.code} is not in the list of this appraisal")
        # A second verdict could turn a failure into a pass.
        if definition in self._outcomes:
            raise ValueError(f"the check {definition.code} was recorded twice")
        self._outcomes[definition] = Check(
            self._numbers[definition],
            definition.code,
            definition.title,
            state,
            _as_text(expected),
            _as_text(found),
            detail,
        )


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    return value.hex() if isinstance(value, bytes) else str(value)
