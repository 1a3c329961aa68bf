"""How much noise a privacy budget takes, and what a run has spent: Opacus's accountants, held to their conditions.

They speak of the Gaussian mechanism on rows that were drawn independently with one probability (Poisson sampling),
where neighbouring data sets differ by one row, present or absent:

- `prv`: Gopi, Lee and Wutschitz, "Numerical composition of differential privacy", arXiv:2106.02848;
- `rdp`: Mironov, Talwar and Zhang, "Rényi differential privacy of the sampled Gaussian mechanism",
  arXiv:1908.10530.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from trainer.errors import ErrorCode, JobError
from trainer.spec import PrivacySection

_T = TypeVar("_T")


@dataclass(frozen=True)
class Mechanism:
    """What is fixed before the first step.

    Attributes:
        rows: training rows; taken as public.
        expected_rows: of a step on average: what the gradient is divided by, whatever was drawn.
        steps: optimizer steps.
        noise_multiplier: standard deviation of the noise in multiples of `max_grad_norm`.
        max_grad_norm: what a row's gradient is clipped to (L2 norm over the whole adapter).
        delta: of (ε, δ).
        accountant: `prv` or `rdp`.
    """

    rows: int
    expected_rows: int
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    accountant: str

    @property
    def sample_rate(self) -> float:
        """Probability with which a step draws a row."""
        return min(1.0, self.expected_rows / self.rows)


def plan_mechanism(section: PrivacySection, *, rows: int, expected_rows: int, steps: int) -> Mechanism:
    """The mechanism that keeps a section's budget over a whole run.

    Raises:
        JobError: `PRIVACY_NOT_MET`: no noise is enough, or δ would let a whole row through.
    """
    delta = section.target_delta
    if delta is None:
        raise AssertionError("the spec refuses a budget without target_delta")
    if delta * rows >= 1:
        raise JobError(
            ErrorCode.PRIVACY_NOT_MET,
            "privacy.target_delta is too large for so few rows: publishing one of them whole would keep it",
            expected=f"less than 1/{rows}",
            found=delta,
        )
    rate = min(1.0, expected_rows / rows)
    multiplier = section.noise_multiplier or _noise_for(section, rate, steps)
    return Mechanism(rows, expected_rows, steps, multiplier, section.max_grad_norm, delta, section.accountant)


def _noise_for(section: PrivacySection, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier  # noqa: PLC0415 -- an optional dependency

    def search() -> float:
        found: float = get_noise_multiplier(
            target_epsilon=section.target_epsilon,
            target_delta=section.target_delta,
            sample_rate=rate,
            steps=steps,
            accountant=section.accountant,
            epsilon_tolerance=min(0.01, 0.01 * (section.target_epsilon or 1)),
        )
        return found

    return _accounted(search)


def new_accountant(kind: str) -> Any:
    """An accountant of Opacus that has seen nothing yet."""
    from opacus.accountants import create_accountant  # noqa: PLC0415 -- an optional dependency

    return create_accountant(kind)


def steps_seen(accountant: Any) -> int:
    """How many steps an accountant was told of."""
    return sum(int(steps) for _, _, steps in accountant.history)


def spent(accountant: Any, delta: float) -> float:
    """Upper bound on ε for the steps that an accountant was told of.

    Raises:
        JobError: `PRIVACY_NOT_MET`: it can give none.
    """
    epsilon = float(_accounted(lambda: accountant.get_epsilon(delta=delta)))
    if not math.isfinite(epsilon) or epsilon < 0:
        raise _no_bound(f"ε = {epsilon}")
    return epsilon


def require_within(epsilon: float, section: PrivacySection) -> None:
    """Demand that what was spent be within the budget.

    Raises:
        JobError: `PRIVACY_NOT_MET`.
    """
    if section.target_epsilon is not None and epsilon > section.target_epsilon:
        raise JobError(
            ErrorCode.PRIVACY_NOT_MET,
            "more privacy was spent than privacy.target_epsilon",
            expected=f"ε of at most {section.target_epsilon}",
            found=epsilon,
        )


def _accounted(compute: Callable[[], _T]) -> _T:
    """Opacus warns of logarithms of 0 where all rows are drawn; what it raises means that there is no bound."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compute()
    except (ArithmeticError, ValueError, RuntimeError, MemoryError, IndexError) as error:
        raise _no_bound(type(error).__name__) from error


def _no_bound(found: str) -> JobError:
    return JobError(
        ErrorCode.PRIVACY_NOT_MET,
        "the accountant finds no bound on the privacy spent",
        expected="a finite ε",
        found=found,
        hint="raise privacy.target_epsilon or target_delta, take fewer steps, or set privacy.accountant to rdp",
    )
